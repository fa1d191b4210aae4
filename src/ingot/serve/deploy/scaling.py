"""How many replicas run on Kubernetes: a KEDA ScaledObject on our own metrics.

References:
    KEDA 2.20: `keda.sh/v1alpha1` ScaledObject; scalers `prometheus` and `postgresql`.
"""

import math
from dataclasses import dataclass

from ingot.core.digest import Json
from ingot.core.errors import ServeError
from ingot.serve.deploy.names import check_label, check_uri
from ingot.serve.jobs.job import JobState
from ingot.serve.jobs.postgres_store import SCHEMA
from ingot.twin.policy import ScalingPolicy

# what a HorizontalPodAutoscaler takes: a stabilization window, 32 bits, whole thousandths
_MOST_COOLDOWN_S, _MOST_REPLICAS, _LEAST_TARGET = 3600, 2**31 - 1, 0.001
_POLL_S = 5


@dataclass(frozen=True, slots=True)
class Scaling:
    """How many replicas, and what they follow.

    Attributes:
        prometheus: Address of the Prometheus server that scrapes the replicas.
        policy: Least and most replicas, the target per replica (requests in flight, or backlog of
            jobs), and the seconds before a scale-in. A HorizontalPodAutoscaler has nothing like
            the scale-out cool-down, which is not translated.

    Raises:
        ServeError: Figures that cannot be translated; raised when it is built.
    """

    prometheus: str
    policy: ScalingPolicy

    def __post_init__(self) -> None:
        """Refuse what cannot be translated."""
        check_uri("The address of Prometheus", self.prometheus, schemes=("http", "https"))
        if self.policy.in_cooldown_s > _MOST_COOLDOWN_S:
            raise ServeError(
                f"A scale-in cool-down must be at most {_MOST_COOLDOWN_S} s on Kubernetes; got "
                f"{self.policy.in_cooldown_s:g}. Lower it."
            )
        if self.max_replicas > _MOST_REPLICAS or self.policy.target < _LEAST_TARGET:
            raise ServeError(
                f"Kubernetes takes up to {_MOST_REPLICAS} replicas and a target of {_LEAST_TARGET} "
                f"or more; got {self.max_replicas} and {self.policy.target:g}. Correct them."
            )

    @property
    def min_replicas(self) -> int:
        """Never fewer."""
        return self.policy.min_instances

    @property
    def max_replicas(self) -> int:
        """Never more."""
        return self.policy.max_instances


@dataclass(frozen=True, slots=True)
class AsyncScaling:
    """What replicas of an asynchronous endpoint share.

    Attributes:
        secret: Secret that holds the URL of the PostgreSQL database.
        output: Prefix of results, on an object store that every replica reaches.
        secret_key: Its key within the secret.
    """

    secret: str
    output: str
    secret_key: str = "url"  # noqa: S105 # the name of a field

    def __post_init__(self) -> None:
        """Refuse what Kubernetes would."""
        check_label("secret", self.secret)
        check_label("key of the secret", self.secret_key)
        check_uri("The output", self.output)


def scaled_object(
    scaling: Scaling, jobs: AsyncScaling | None, *, model: str, namespace: str
) -> dict[str, Json]:
    """Return the ScaledObject, without its metadata and target.

    Requests are seen by whoever answers them, so at no replica there would be no metric and no way
    back: replicas that answer requests never go to zero. Jobs wait in the database, which is asked
    itself where they may.

    Args:
        scaling: How many.
        jobs: What an asynchronous endpoint shares; None for one that answers requests.
        model: Registry name of the model, a label of its metrics.
        namespace: Where the replicas are, a label that Prometheus adds.

    Raises:
        ServeError: Replicas that answer requests would go to zero.
    """
    policy = scaling.policy
    if jobs is None and policy.min_instances == 0:
        raise ServeError(
            "Replicas that answer requests must be 1 or more; got a least number of 0, at which "
            "nobody could take the next one. Serve jobs to scale to zero, or raise it."
        )
    series = f'{{model="{model}",namespace="{namespace}"}}'
    # every replica reads the one backlog; each sees only its own requests
    query = f"max(ingot_job_backlog{series})" if jobs else f"sum(ingot_requests_in_flight{series})"
    asks_store = jobs is not None and policy.min_instances == 0
    wait = math.ceil(policy.in_cooldown_s)
    down: dict[str, Json] = {"stabilizationWindowSeconds": wait}
    if not policy.can_scale_in:
        down["selectPolicy"] = "Disabled"
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "spec": {
            "scaleTargetRef": {},
            "pollingInterval": _POLL_S,
            "cooldownPeriod": wait,
            "minReplicaCount": policy.min_instances,
            "maxReplicaCount": policy.max_instances,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {
                "scaleUp": {"stabilizationWindowSeconds": 0}, "scaleDown": down,
            }}},
            "triggers": [_asked(scaling, model) if asks_store else _scraped(scaling, query)],
        },
    }  # fmt: skip


def _asked(scaling: Scaling, model: str) -> Json:
    """Return a trigger that asks the job store, which is there when no replica is."""
    waiting = ", ".join(f"'{state.value}'" for state in (JobState.QUEUED, JobState.RUNNING))
    query = (
        f"SELECT coalesce(sum(n), 0)::bigint FROM {SCHEMA}.counts "  # noqa: S608 # names are checked
        f"WHERE endpoint = '{model}' AND state IN ({waiting})"
    )
    return {
        "type": "postgresql",
        "metricType": "AverageValue",
        "metadata": {
            "connectionFromEnv": "INGOT_DATABASE",
            "query": query,
            "targetQueryValue": f"{scaling.policy.target:g}",
            "activationTargetQueryValue": "0",
        },
    }


def _scraped(scaling: Scaling, query: str) -> Json:
    return {
        "type": "prometheus",
        "metricType": "AverageValue",
        "metadata": {
            "serverAddress": scaling.prometheus,
            "query": query,
            "threshold": f"{scaling.policy.target:g}",
            "activationThreshold": "0",
            "ignoreNullValues": "false",  # metrics that are lost are no reason to scale in
        },
    }
