"""The engine file: its format, reading it safely and writing it. No runtime is imported here."""

from .manifest import ALIGNMENTS, RESIZES, ImageSize, InputSpec, Manifest, Member
from .plans import PlanRecord, PlanTarget, records
from .ports import GRAPHS, graph_name, graph_ports, weights_member
from .reader import MANIFEST, EngineFile
from .statistics import CODES, STYLES, Statistics
from .writer import add_plans, write_engine

__all__ = [
    "ALIGNMENTS",
    "CODES",
    "GRAPHS",
    "MANIFEST",
    "RESIZES",
    "STYLES",
    "EngineFile",
    "ImageSize",
    "InputSpec",
    "Manifest",
    "Member",
    "PlanRecord",
    "PlanTarget",
    "Statistics",
    "add_plans",
    "graph_name",
    "graph_ports",
    "records",
    "weights_member",
    "write_engine",
]
