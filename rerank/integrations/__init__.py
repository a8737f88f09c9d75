"""The ranker as a part of other frameworks, each a module and an extra of its name.

    from rerank.integrations.langchain import RerankCompressor
    from rerank.integrations.llamaindex import RerankPostprocessor
    from rerank.integrations.haystack import RerankRanker
    from rerank.integrations.pyterrier import RerankTransformer
    from rerank.integrations.mcp import serve_stdio

`common` is what they share: the ranker that they are given, and what is made of a list of documents.
"""
