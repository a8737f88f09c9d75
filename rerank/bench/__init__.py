"""How fast the engines are: ours and others, over the same calls, in one run."""

from __future__ import annotations

from rerank.bench.engines import ENGINES, Engine, Setup
from rerank.bench.machine import Machine, limit_threads, product_peak, product_shapes
from rerank.bench.race import BASELINES, Row, Table, enter, race, table, without
from rerank.bench.work import WORK, Cost, Model, Slice, Task, first_work, pointwise_work

__all__ = [
    "BASELINES",
    "ENGINES",
    "WORK",
    "Cost",
    "Engine",
    "Machine",
    "Model",
    "Row",
    "Setup",
    "Slice",
    "Table",
    "Task",
    "enter",
    "first_work",
    "limit_threads",
    "pointwise_work",
    "product_peak",
    "product_shapes",
    "race",
    "table",
    "without",
]
