"""Client of a Continuum mesh.

- `Bus`: commands and facts on the bus, as messages of the contract (`continuum.<area>.v1.*_pb2`), with nats-py beneath;
- `Rest`: every request of the gateway, typed, with the standard library beneath;
- `local`: where a mesh on this machine answers.
"""

from ._http import ProblemError, ServerEvent, UnreachableError
from .bus import Bus, Event, Events, LostError, NotStoredError, RefusedError, StoredAt, UnansweredError, pattern, subject
from .local import Endpoints, NoMeshError
from .rest import Rest

__all__ = [
    "Bus",
    "Endpoints",
    "Event",
    "Events",
    "LostError",
    "NoMeshError",
    "NotStoredError",
    "ProblemError",
    "RefusedError",
    "Rest",
    "ServerEvent",
    "StoredAt",
    "UnansweredError",
    "UnreachableError",
    "pattern",
    "subject",
]
