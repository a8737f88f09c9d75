"""placeholder"""

if __name__ != "rerank.losses":
    raise ImportError("import this package as rerank.losses")
