"""The HTTP entrance for identity providers: verify, make durable, contain, answer (DESIGN section 4)."""

from offboard_worker.receiver.server import Receiver

__all__ = ["Receiver"]
