"""The states of a service and of its parts, as state.json, `avocado status --json` and the card have them."""

from __future__ import annotations

from enum import Enum


class ServiceState(str, Enum):
    """How a service is."""

    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"  # a part that requests pass through is not well
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"

    __str__ = str.__str__

    @property
    def serving(self) -> bool:
        """Requests are taken."""
        return self in (ServiceState.READY, ServiceState.DEGRADED)

    @property
    def over(self) -> bool:
        return self in (ServiceState.STOPPED, ServiceState.FAILED)

    @property
    def mood(self) -> str:
        """How it is shown: good, bad, calm (nothing to see), or busy."""
        return _SERVICE_MOODS.get(self, "busy")


class PartState(str, Enum):
    """How a part of a service is."""

    NOT_CONFIGURED = "not configured"
    OFF = "off"
    WAITING = "waiting"
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNROUTED = "unrouted"  # announced, and nobody listens
    PUBLISHING = "publishing"
    NOT_ANNOUNCED = "not announced"
    FAILED = "failed"
    STOPPED = "stopped"

    __str__ = str.__str__

    @property
    def mood(self) -> str:
        """How it is shown: good, bad, calm (nothing to see), or busy."""
        return _MOODS.get(self, "busy")


_SERVICE_MOODS = {
    ServiceState.READY: "good",
    ServiceState.DEGRADED: "bad",
    ServiceState.FAILED: "bad",
    ServiceState.STOPPED: "calm",
}
_MOODS = {
    PartState.HEALTHY: "good",
    **dict.fromkeys((PartState.FAILED, PartState.UNHEALTHY, PartState.UNROUTED), "bad"),
    **dict.fromkeys((PartState.OFF, PartState.NOT_CONFIGURED, PartState.STOPPED), "calm"),
}
