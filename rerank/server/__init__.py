"""The service: rankers over HTTP, as Cohere's, Jina's and text-embeddings-inference's clients ask for them.

    app = create_app(Service([Served("pointwise", rerank.load("pointwise"))]))

`service` takes requests in and has them ranked, `app` says it in HTTP, `running` runs it. The command: `rerank serve`.
"""

from __future__ import annotations

from rerank.errors import BackboneError

try:
    from rerank.server.app import create_app
    from rerank.server.served import Served
    from rerank.server.service import Service
    from rerank.server.settings import Limits
except ImportError as missing:
    if (missing.name or "").partition(".")[0] not in ("fastapi", "starlette", "prometheus_client"):
        raise
    raise BackboneError(f"the service needs {missing.name}: pip install 'rerank-llm[serve]'") from missing

__all__ = ["Limits", "Served", "Service", "create_app"]
