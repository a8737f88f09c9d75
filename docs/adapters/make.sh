#!/usr/bin/env bash
# Makes the adapters that ship: `docs/adapters/make.sh COLLECTIONS`, a folder with beir/, trec-dl/ and lists/.
# Everything goes on where it stopped. What is made of the collections lies in work/ and is not for publication.
# Parts 1 to 3 of pointwise, 1 and 2 of first, were trained on one CPU core each (about five hours in all); what comes
# after `rerank data queries` for three corpora was done on a GPU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
mkdir -p work
ln -sfn "$(realpath "${1:?the folder with beir/, trec-dl/ and lists/}")" shared
dl=shared/trec-dl lists=shared/lists beir=shared/beir
once() { [ -e "$1" ] || "${@:2}"; }
prepare() { once "$2" python prepare.py "$@"; }
held() { printf '%s\n' "${@:2}" > "$1"; }

# What is held out, and what is chosen on
once work/dl21.held.txt python prepare.py split $dl/dl21.bm25.json $dl/qrels.dl21-passage.txt 20 work/dl21.dev.jsonl work/dl21.held.txt
prepare hold work/abstracts.dev.jsonl 40 30 $beir/scifact:train $beir/nfcorpus:dev
cat work/dl21.dev.jsonl work/abstracts.dev.jsonl > work/dev.jsonl
held work/held.web.txt ../$dl/dl19.bm25.json ../$dl/dl21.bm25.json
held work/held.scifact.txt ../$beir/scifact:test
held work/held.nfcorpus.txt ../$beir/nfcorpus:test ../$beir/nfcorpus:dev

# Web passages, a thousand questions, and a small bi-encoder's order
prepare corpus work/web/corpus.jsonl $lists/train_dl21_judged.jsonl $lists/train_dl23_llmjudge25.jsonl $lists/unlabelled_dl22_bm25_splade.jsonl
rerank data queries work/web -o work/some -n 960 --exclude work/dl21.held.txt --exclude $dl/dl19.bm25.json
prepare candidates work/web.bm25.jsonl work/web/corpus.jsonl 30 work/held.web.txt $lists/wikiqa_train.jsonl $lists/antique_test200_judged.jsonl work/some/queries.jsonl
prepare teach work/web.minilm.jsonl work/web.bm25.jsonl work/web/corpus.jsonl embedded 0
rerank run $lists/unlabelled_dl22_bm25_splade.jsonl -s pointwise -b bi-encoder --depth 50 -o work/dl22.minilm.trec
prepare easy work/easy.jsonl work/web.minilm.jsonl work/web/corpus.jsonl
for part in pointwise-1 pointwise-2 pointwise-3 first-1 first-2; do
    rerank train $part.yaml --out work/$part
done
prepare average work/pointwise work/pointwise-{1,2,3}/adapter

# A question for every passage and abstract, and a larger bi-encoder's order, with BM25's share where that helps
teacher=sentence-transformers/all-mpnet-base-v2
prepare corpus work/claims/corpus.jsonl $lists/climate_fever.jsonl
rerank data queries work/web -o work/web-all -n 30000 --block 4096 --exclude work/dl21.held.txt
taught() { # NAME CORPUS DEPTH HELD SHARE QUERIES...
    prepare candidates "work/$1.bm25.jsonl" "$2/corpus.jsonl" "$3" "work/held.$4.txt" "${@:6}"
    prepare teach "work/$1.jsonl" "work/$1.bm25.jsonl" "$2/corpus.jsonl" $teacher "$5"
}
taught asked work/web 32 web 0 $lists/wikiqa_train.jsonl $lists/antique_test200_judged.jsonl $lists/unlabelled_dl22_bm25_splade.jsonl
taught written work/web 32 web 0 work/web-all/queries.jsonl
taught claims work/claims 40 scifact 0 $lists/climate_fever.jsonl
for name in scifact:.4 nfcorpus:.3; do
    share=${name#*:} name=${name%%:*}
    rerank data queries $beir/$name -o work/$name-all -n 6000 --block 2048 --passage-tokens 200 --exclude $beir/$name:test
    taught $name $beir/$name 40 $name "$share" $lists/train_${name}_train_bm25top100.jsonl
    taught $name-written $beir/$name 32 $name "$share" work/$name-all/queries.jsonl
done
for seed in 0 1; do
    for part in pointwise-4 first-3; do
        sed "s/^seed: 0/seed: $seed/" $part.yaml > $part.$seed.yaml
        rerank train $part.$seed.yaml --out work/$part.$seed
    done
done
for part in pointwise-4 first-3; do
    prepare average work/$part work/$part.{0,1}/adapter
    once work/$part.r8 rerank compress work/$part --rank 8 --output work/$part.r8
done
