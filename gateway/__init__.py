"""An async gateway: every upstream gets its own pool, its own circuit, its own limits on time, and its own plan B."""

from fallbacks import Alternate, Answer, Fallback, LastGood, Question, Source, Static, Tier, handler
from fallbacks.last_good import MemorySnapshot
from gateway.breaker import BreakerSnapshot, CircuitBreaker, Permit
from gateway.bulkhead import Bulkhead, BulkheadSnapshot
from gateway.context import Deadline
from gateway.counts import Counts, LatencySnapshot
from gateway.events import AttemptFailed, CallFinished, CircuitChanged, Event, PolicyChanged
from gateway.gathering import gather
from gateway.http.reply import HttpRefused, HttpReply
from gateway.operation import Operation
from gateway.outcome import (
    BulkheadFull,
    CircuitOpen,
    ConfigError,
    ConfigErrors,
    DeadlineExceeded,
    Failed,
    FailedTimeout,
    GatewayClosed,
    GatewayError,
    KeyNeeded,
    NotSent,
    Outcome,
    Refused,
    Rejected,
    Unknown,
    UnknownName,
    UnknownTimeout,
    WrongLoop,
)
from gateway.policy import (
    BreakerPolicy,
    BudgetPolicy,
    BulkheadPolicy,
    EndpointsPolicy,
    HttpPolicy,
    Policy,
    RetryPolicy,
    TimeoutPolicy,
)
from gateway.registered import OperationSnapshot
from gateway.registry import Gateway, GatewaySnapshot
from gateway.retry import BudgetSnapshot, Retry, RetryBudget
from gateway.slot import Slot
from gateway.upstream import Upstream, UpstreamSnapshot

__all__ = [
    "Alternate",
    "Answer",
    "AttemptFailed",
    "BreakerPolicy",
    "BreakerSnapshot",
    "BudgetPolicy",
    "BudgetSnapshot",
    "Bulkhead",
    "BulkheadFull",
    "BulkheadPolicy",
    "BulkheadSnapshot",
    "CallFinished",
    "CircuitBreaker",
    "CircuitChanged",
    "CircuitOpen",
    "ConfigError",
    "ConfigErrors",
    "Counts",
    "Deadline",
    "DeadlineExceeded",
    "EndpointsPolicy",
    "Event",
    "Failed",
    "FailedTimeout",
    "Fallback",
    "Gateway",
    "GatewayClosed",
    "GatewayError",
    "GatewaySnapshot",
    "HttpPolicy",
    "HttpRefused",
    "HttpReply",
    "KeyNeeded",
    "LastGood",
    "LatencySnapshot",
    "MemorySnapshot",
    "NotSent",
    "Operation",
    "OperationSnapshot",
    "Outcome",
    "Permit",
    "Policy",
    "PolicyChanged",
    "Question",
    "Refused",
    "Rejected",
    "Retry",
    "RetryBudget",
    "RetryPolicy",
    "Slot",
    "Source",
    "Static",
    "Tier",
    "TimeoutPolicy",
    "Unknown",
    "UnknownName",
    "UnknownTimeout",
    "Upstream",
    "UpstreamSnapshot",
    "WrongLoop",
    "gather",
    "handler",
]
