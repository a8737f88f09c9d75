#!/usr/bin/env bash
# Makes the adapters that ship: `docs/adapters/make.sh COLLECTIONS`, a folder with beir/, trec-dl/ and lists/.
# Everything goes on where it stopped. What is made of the collections lies in work/ and is not for publication.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
mkdir -p work
ln -sfn "$(realpath "${1:?the folder with beir/, trec-dl/ and lists/}")" shared
dl=shared/trec-dl
[ -f work/dl21.held.txt ] || python prepare.py split $dl/dl21.bm25.json $dl/qrels.dl21-passage.txt 20 work/dl21.dev.jsonl work/dl21.held.txt
rerank run shared/lists/unlabelled_dl22_bm25_splade.jsonl -s pointwise -b bi-encoder --depth 50 -o work/dl22.minilm.trec
rerank train pointwise.yaml --out work/pointwise
