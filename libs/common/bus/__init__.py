"""Events between services: out of the outbox over NATS JetStream, in through the inbox."""

from libs.common.bus.bus import Bus, BusUnavailableError, ensure_stream
from libs.common.bus.handlers import EventServiceHandlers
from libs.common.bus.relay import Relay
from libs.common.bus.subscriber import Subscriber

__all__ = ["Bus", "BusUnavailableError", "EventServiceHandlers", "Relay", "Subscriber", "ensure_stream"]
