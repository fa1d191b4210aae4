"""The whole way in two minutes: train, optimize, prove, release, serve, and catch a forger.

Every line that starts with `$` is a command you can type with your own model. `make demo` runs
this; `make demo MODEL=my.onnx DATA=my.toml REQUIRE="accuracy drop <= 0.01"` runs it on yours.
"""

import argparse
import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

HERE = Path("demo")
PIDFILE = HERE / "endpoint.pid"


def main() -> None:
    """Run the demo; exit non-zero if any step does not do what it says."""
    options = read_options()
    stop_endpoint()
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    os.environ["INGOT_HOME"] = str((HERE / "home").resolve())
    started = time.monotonic()
    model, data = (options.model, options.data) if options.model else train_digits()
    best = str(HERE / "best")

    title("1. Make it small and fast, keep the claim, prove it")
    run("optimize", *model.split(), "--data", data, "--require", options.require, "--out", best)

    before_after()

    title("2. Release it with that evidence, and serve it")
    run("release", "demo", best, "--stage", "prod")
    url = serve()

    title("3. Ask it over HTTP, with real test inputs it has not seen")
    run("predict", f"{url}/demo", "--data", data, "--rows", "5")
    if not options.model:
        check_answers(url, data)

    title("4. The ledger says what ran and why it was allowed to")
    run("ledger", "show")
    run("ledger", "verify")
    forge()

    farewell(url, time.monotonic() - started)


def read_options() -> argparse.Namespace:
    """Return the model and data to use: the digits unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="", help="Model as `ingot optimize` takes it, with its options."
    )
    parser.add_argument("--data", default="", help="Data as `ingot optimize` takes it.")
    parser.add_argument("--require", default="accuracy drop <= 0.01", help="Claim to keep.")
    options = parser.parse_args()
    if bool(options.model) != bool(options.data):
        parser.error("give --model and --data together, or neither")
    return options


def train_digits() -> tuple[str, str]:
    """Train the digits network and write its data; return both as command-line words."""
    import numpy as np

    from ingot_workloads.digits.data import load

    title("0. Train a small CNN on the handwritten digits that ship with scikit-learn")
    weights, data = HERE / "digits.safetensors", HERE / "digits.npz"
    words = [sys.executable, "-m", "ingot_workloads.digits.train", "--out", str(weights)]
    print("$ python -m ingot_workloads.digits.train --out", weights, flush=True)
    subprocess.run(words, check=True)
    arrays = {}
    for name, split in load().splits.items():
        arrays[f"{name}/image"] = split.inputs["image"]
        arrays[f"{name}/target"] = split.targets
    np.savez_compressed(data, **arrays)
    return f"ingot_workloads.digits.model:digits_cnn --weights {weights}", str(data)


def before_after() -> None:
    """Print what the model was, the best it can be in float, and what was kept."""
    from ingot.core.units import show_bytes, show_ms

    report = json.loads((HERE / "best" / "report.json").read_text())
    rows = [row for row in report["rows"] if row["latency"] and row["quality"]]
    floats = sorted((r for r in rows if r["kind"] == "float"), key=lambda r: r["latency"]["value"])
    eager = [row for row in floats if row["config"].startswith("torch-eager fp32")]
    shown = [("before: torch, eager", row) for row in eager]
    shown += [("best float", row) for row in floats[:1]]
    shown += [("kept", row) for row in rows if row["is_chosen"]]
    head = ("", "runs on", "size", report["shape"], report["metric"])
    print("\n{:<22}{:<26}{:>11}{:>11}{:>11}".format(*head))
    for what, row in shown:
        cells = (show_bytes(row["size_bytes"]), show_ms(row["latency"]["value"]))
        quality = f"{row['quality']['value']:.4f}"
        print("{:<22}{:<26}{:>11}{:>11}{:>11}".format(what, row["config"], *cells, quality))
    print(report["summary"], flush=True)


def serve() -> str:
    """Start the endpoint in the background on a free port; return its URL."""
    words = ["ingot", "serve", "demo@prod", "--port", "0"]
    print("\n$", shlex.join(words), "&", flush=True)
    log = (HERE / "endpoint.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "ingot.cli", *words[1:]],
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    PIDFILE.write_text(str(process.pid))
    for _ in range(300):
        found = [w for w in (HERE / "endpoint.log").read_text().split() if w.startswith("http://")]
        if found:
            print(f"answering at {found[0]}")
            return found[0].rstrip("/.")
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"the endpoint did not start:\n{(HERE / 'endpoint.log').read_text()}")


def check_answers(url: str, data: str) -> None:
    """Send every test image over HTTP and count the right answers."""
    import numpy as np

    from ingot.serve.client import predict

    with np.load(data) as arrays:
        images, labels = arrays["test/image"], arrays["test/target"]
    right = 0
    for start in range(0, len(images), 64):
        outputs, headers = predict(url, "demo", {"image": images[start : start + 64]})
        logits = next(iter(outputs.values()))
        right += int((logits.argmax(1) == labels[start : start + 64]).sum())
    version = headers["ingot-version"][:19]
    print(f"{right} of {len(labels)} test scans right over HTTP, version {version}")


def forge() -> None:
    """Change one entry in a copy of the ledger, and show that verification catches it."""
    copy = HERE / "forged"
    copy.mkdir()
    for part in (HERE / "home").glob("ingot.sqlite*"):
        shutil.copy(part, copy / part.name)
    with sqlite3.connect(copy / "ingot.sqlite") as database:
        triggers = database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for (name,) in triggers:
            database.execute(f'DROP TRIGGER "{name}"')
        changed = database.execute(
            "UPDATE ledger_entries SET data ="
            " CAST(replace(CAST(data AS TEXT), 'demo', 'evil') AS BLOB)"
        ).rowcount
    print(f"\nA forger with write access changes {changed} entries in a copy of the ledger:")
    if run("ledger", "verify", home=copy, check=False) == 0:
        raise SystemExit("the forged ledger verified: that must not happen")


def farewell(url: str, seconds: float) -> None:
    """Say where everything is, and how to stop and clean up."""
    request = (
        '{"inputs":[{"name":"image","datatype":"FP32","shape":[1,1,8,8],"data":['
        + "0," * 63
        + "0]}]}"
    )
    (HERE / "request.json").write_text(request)
    chosen = json.loads((HERE / "best" / "evidence.json").read_text())["predicate"]["config"]
    print(f"""
Done in {seconds:.0f} s. The chosen model runs on {chosen["engine"]} {chosen["precision"]}.
  report     {HERE / "best" / "report.html"}   (open it in a browser)
  evidence   {HERE / "best" / "evidence.json"}
  registry   {HERE / "home" / "ingot.sqlite"}
  endpoint   {url}   (pid {PIDFILE.read_text()}, log {HERE / "endpoint.log"})
Try it:      curl -s -d @{HERE / "request.json"} {url}/v2/models/demo/infer
Stop it:     kill {PIDFILE.read_text()}
Clean up:    make clean
""")


def run(*words: str, home: Path | None = None, check: bool = True) -> int:
    """Print an `ingot` command and run it."""
    print("\n$", shlex.join(["ingot", *words]), flush=True)
    environment = dict(os.environ, INGOT_HOME=str(home.resolve())) if home else None
    code = subprocess.run([sys.executable, "-m", "ingot.cli", *words], env=environment).returncode
    if check and code != 0:
        raise SystemExit(f"`ingot {words[0]}` exited with {code}")
    return code


def title(text: str) -> None:
    """Print a heading."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def stop_endpoint() -> None:
    """End the endpoint of an earlier demo, if it is still ours."""
    if not PIDFILE.is_file():
        return
    pid = int(PIDFILE.read_text())
    command = Path(f"/proc/{pid}/cmdline")
    if command.exists() and b"demo@prod" in command.read_bytes():
        os.kill(pid, 15)


if __name__ == "__main__":
    stop_endpoint() if sys.argv[1:] == ["--stop"] else main()
