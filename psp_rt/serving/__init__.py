"""Models behind HTTP, and a page that draws: what ``psp-rt serve`` runs.

app = create_app([Served.open(path) for path in paths])    # an ASGI application, for uvicorn and others
"""

from .app import create_app
from .limits import Limits
from .served import Served

__all__ = ["Limits", "Served", "create_app"]
