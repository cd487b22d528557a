"""What is read off pods: each reason why one does not run, in the words that its owner can act upon."""

import pytest

from pipeline.cluster import pods


def pod(phase="Pending", *, conditions=(), **container):
    """What the API says of a pod with one container."""
    return {
        "status": {
            "phase": phase,
            "conditions": list(conditions),
            "containerStatuses": [container] if container else [],
        }
    }


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available:\n 3 Insufficient nvidia.com/gpu.",
}


@pytest.mark.parametrize(
    ("found", "told", "hopeless"),
    [
        (pod(), "", False),
        (
            pod(conditions=[UNSCHEDULABLE]),
            "Unschedulable (0/3 nodes are available: 3 Insufficient nvidia.com/gpu.)",
            False,
        ),
        (pod(state={"waiting": {"reason": "ContainerCreating"}}), "ContainerCreating", False),
        (
            pod(state={"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}),
            "ImagePullBackOff (no such tag)",
            True,
        ),
        (
            pod(state={"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "s3" not found'}}),
            "",
            True,
        ),
        (pod("Running", state={"running": {}}), "", False),
    ],
)
def test_why_a_pod_does_not_run(found, told, hopeless):
    """A run that waits for a card is patient; one whose image has a wrong name is not."""
    assert told in pods.waiting(found)
    assert pods.is_hopeless(found) is hopeless


def test_an_end_is_told_with_its_reason():
    """`OOMKilled` is the one that people need to read."""
    ended = pod("Running", restartCount=2, lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}})
    assert pods.last_end(ended) == "OOMKilled, exit status 137"
    assert pods.restarts([ended, pod()]) == 2
    assert pods.last_end(pod()) == ""


def test_pods_are_counted_and_their_reasons_told_once():
    """Twenty pods that wait for the same card are one sentence."""
    quota = {
        "status": {
            "conditions": [
                {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
            ]
        }
    }
    assert pods.summary([pod(conditions=[UNSCHEDULABLE])] * 20 + [pod("Running")]) == (
        "20 pods pending, 1 pods running: Unschedulable (0/3 nodes are available: 3 Insufficient nvidia.com/gpu.)"
    )
    assert pods.summary([], [quota, {}]) == "no pod yet: FailedCreate (exceeded quota)"
    assert pods.summary([]) == "no pod yet"


def test_a_long_message_is_cut():
    """Admission controllers write pages."""
    assert len(pods.waiting(pod(state={"waiting": {"reason": "ErrImagePull", "message": "x" * 5000}}))) < 400
