"""Where one machine ends: bundles, Kubernetes manifests and Ray Serve applications."""
