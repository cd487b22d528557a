"""What Kubernetes' API answers, or that it does not, as errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import kr8s

from pipeline.errors import ConfigError

SILENT = (OSError, httpx.HTTPError, kr8s.APITimeoutError)
"""What comes of a server that does not answer."""


@contextmanager
def explain(namespace: str) -> Iterator[None]:
    """Ask the API within this context.

    Raises:
        ConfigError: It refuses, or does not answer.
    """
    try:
        yield
    except kr8s.ServerError as error:
        raise _refusal(error, namespace) from error
    except SILENT as error:
        raise unreachable(error) from error


def _refusal(error: kr8s.ServerError, namespace: str) -> ConfigError:
    code = error.response.status_code if error.response is not None else 0
    answer = " ".join(str(error).split())
    if code == 404 and "namespaces" in answer:
        why = f"There is no namespace '{namespace}'. Create it (kubectl apply -f deploy/kubernetes/namespace.yaml), or correct cluster.kubernetes.namespace."
    elif code == 404:
        why = "Dask's operator is not installed: its resource DaskCluster is unknown. deploy/kubernetes/README.md installs it."
    elif code in (401, 403):
        why = (
            f"This account may not do that in namespace '{namespace}'. Give it the Role of deploy/kubernetes/rbac.yaml, run as the "
            "service account `halotile-driver`, or correct cluster.kubernetes.namespace. A quota or an admission rule answers so too."
        )
    else:
        why = "Correct cluster.kubernetes, or ask who runs this Kubernetes."
    return ConfigError(f"Kubernetes refuses the pods of this run ({code}: {answer[:400]}). {why}")


def unreachable(error: Exception) -> ConfigError:
    """The error of an API that is not there, or of which nobody says where it is."""
    return ConfigError(
        f"cluster.kind is 'kubernetes', but no API server answers ({type(error).__name__}: {error}). In a pod, mount a token of its "
        "service account (automountServiceAccountToken: true); elsewhere, let KUBECONFIG or ~/.kube/config name a cluster that "
        "`kubectl get pods` reaches."
    )
