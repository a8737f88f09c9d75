#!/usr/bin/env bash
# Makes the adapters that ship: `docs/adapters/make.sh COLLECTIONS`, a folder with beir/, trec-dl/ and lists/.
# Everything goes on where it stopped. What is made of the collections lies in work/ and is not for publication.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
mkdir -p work
ln -sfn "$(realpath "${1:?the folder with beir/, trec-dl/ and lists/}")" shared
dl=shared/trec-dl lists=shared/lists
once() { [ -e "$1" ] || "${@:2}"; }

once work/dl21.held.txt python prepare.py split $dl/dl21.bm25.json $dl/qrels.dl21-passage.txt 20 work/dl21.dev.jsonl work/dl21.held.txt
once work/web/corpus.jsonl python prepare.py corpus work/web/corpus.jsonl $lists/train_dl21_judged.jsonl \
    $lists/train_dl23_llmjudge25.jsonl $lists/unlabelled_dl22_bm25_splade.jsonl
printf '%s\n' ../$dl/dl19.bm25.json ../$dl/dl21.bm25.json > work/held.txt
rerank data queries work/web -o work/written -n 960 --exclude work/dl21.held.txt --exclude $dl/dl19.bm25.json
once work/web.jsonl python prepare.py candidates work/web.jsonl work/web/corpus.jsonl 30 work/held.txt \
    $lists/wikiqa_train.jsonl $lists/antique_test200_judged.jsonl work/written/queries.jsonl
rerank run $lists/unlabelled_dl22_bm25_splade.jsonl -s pointwise -b bi-encoder --depth 50 -o work/dl22.minilm.trec
rerank run work/web.jsonl -s pointwise -b bi-encoder --depth 30 -o work/web.minilm.trec
once work/easy.jsonl python prepare.py easy work/easy.jsonl work/web.jsonl work/web.minilm.trec

for part in pointwise-1 pointwise-2 pointwise-3 first-1 first-2; do
    rerank train $part.yaml --out work/$part
done
once work/pointwise python prepare.py average work/pointwise work/pointwise-{1,2,3}/adapter
once work/smollm2-135m-pointwise rerank compress work/pointwise --rank 8 --output work/smollm2-135m-pointwise
once work/smollm2-135m-first rerank compress work/first-2/adapter --rank 8 --output work/smollm2-135m-first
