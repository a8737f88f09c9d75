"""A recipe's mistakes are told in one line, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import Cli, assert_error
from training import recipe, save_lists, save_recipe

from rerank.errors import BackboneError, InputError
from rerank.training.checks import check_labels, check_options
from rerank.training.recipe import PROMPTS, Recipe, read_recipe
from rerank.training.sources import read_pools
from rerank.training.written import WRITERS

DATA = {"dataset": "lists.jsonl"}
EVALUATION = {"dataset": "lists.jsonl"}

RANKINGS = {"strategy": "full-ranking", "loss": "lipo_lambda", "rankings": {"count": 3}, "reference": {}}
STRUCTURE = [
    ({"stategy": "first"}, "unknown key 'stategy'; did you mean 'strategy'?"),
    ({"stategy": "first", "strategy": None}, "unknown key 'stategy'; did you mean 'strategy'?"),
    ({"schedule": {"learningrate": 1}}, "unknown key 'schedule.learningrate'; did you mean 'learning_rate'?"),
    ({"data": [{"dataset": "lists.jsonl", "sise": 3}]}, "unknown key 'data.0.sise'; did you mean 'size'?"),
    ({"evaluation": EVALUATION | {"mesure": "AP"}}, "unknown key 'evaluation.mesure'; did you mean 'measure'?"),
    ({"strategy": "first", "write": {"fcator": 1}}, "unknown key 'write.fcator'; did you mean 'factor'?"),
    ({"strategy": "listwize"}, "unknown strategy 'listwize'; did you mean 'listwise'?"),
    ({"schedule": {"decay": "cosin"}}, "unknown schedule.decay 'cosin'; did you mean 'cosine'?"),
    ({"strategy": None}, "strategy is missing"),
    ({"data": None}, "data is missing"),
    ({"name": "No Good"}, "name: "),
    ({"data": []}, "data: "),
    ({"loss": "softmx"}, "unknown loss 'softmx'; did you mean 'softmax'?"),
    ({"loss": None}, "strategy pointwise needs a loss; known: ranknet"),
    ({"loss": {"name": "ranknet", "factor": 0}}, "loss.factor: "),
    ({"strategy": "full-ranking", "loss": "ranknet"}, "loss ranknet needs scores, and full-ranking only writes"),
    ({"strategy": "full-ranking", "loss": None, "write": None}, None),
    ({"strategy": "setwise", "write": {}}, "strategy setwise writes no permutation"),
    ({"strategy": "first", "write": {"top": 3}}, "write.top is for full-ranking"),
    ({"strategy": "full-ranking", "loss": None, "rankings": {}, "write": {}}, "rankings are compared by a loss"),
    ({"strategy": "full-ranking", "rankings": {}, "write": {}}, "rankings take the place of the one that write trains"),
    ({"strategy": "full-ranking", "rankings": {}}, "rankings are scored against a reference; give reference: {beta"),
    ({"rankings": {}}, "rankings are for strategy full-ranking, which writes them; pointwise does not"),
    (RANKINGS | {"data": [DATA | {"labels": "teacher"}], "loss": "ranknet"}, "rankings are measured by judgments, and"),
    (RANKINGS | {"rankings": {"cuont": 3}}, "unknown key 'rankings.cuont'; did you mean 'count'?"),
    (RANKINGS | {"rankings": {"count": 1}}, "rankings.count: "),
    (RANKINGS | {"rankings": {"measure": "nDGC"}}, "nDGC"),
    (RANKINGS, None),
    ({"reference": {"bta": 1}}, "unknown key 'reference.bta'; did you mean 'beta'?"),
    ({"reference": {"beta": 0}}, "reference.beta: "),
    ({"reference": {}, "strategy": "full-ranking", "loss": None}, "reference makes scores for a loss, and there is"),
    ({"reference": {}, "strategy": "score-head"}, "a score-head gives no probabilities"),
    ({"reference": {}, "adapter": "full"}, "method full leaves no model to compare with"),
    ({"reference": {}, "fsdp": "full_shard"}, "reference needs the whole model in each process"),
    ({"reference": {"length": "mean"}}, "reference.length is for texts, and prompt pointwise-yes-no scores single tok"),
    ({"reference": {"length": "mean"}, "prompt": "pointwise-query-likelihood"}, None),
    ({"pairs": 3}, "pairs is for strategy pairwise"),
    ({"strategy": "pairwise", "loss": "pa_bce"}, "loss pa_bce needs amounts, which a pair has not"),
    ({"data": [DATA | {"labels": "teacher"}]}, "loss softmax wants graded labels, and lists.jsonl has a teacher's"),
    ({"data": [DATA | {"labels": "teacher", "grades": [1, 2]}]}, None),
    ({"strategy": "first", "data": [DATA | {"size": 27}]}, "size 27, and first can name 26 passages"),
    ({"data": [DATA | {"teacher": "no.trec"}], "loss": "kl"}, "the file 'no.trec' is not there (looked for "),
    ({"data": [{"dataset": "nowhere.jsonl"}]}, "the dataset 'nowhere.jsonl' is not there (looked for "),
    ({"data": [{"dataset": "list.jsonl"}]}, "did you mean 'lists.jsonl'?"),
    ({"data": [{"dataset": "nowhere/x.jsonl"}]}, ", and neither is its folder"),
    ({"evaluation": {"dataset": "nowhere"}}, "the dataset 'nowhere' is not there"),
    ({"evaluation": EVALUATION | {"run": "no.trec"}}, "the file 'no.trec' is not there"),
    ({"evaluation": EVALUATION | {"measure": "nDGC@10"}}, "nDGC@10"),
    ({"evaluation": EVALUATION | {"options": {"windw": 3}}, "strategy": "first"}, "unknown first option 'windw'; did"),
    ({"evaluation": EVALUATION, "strategy": "score-head"}, "take it out with fsdp or a score-head"),
    ({"evaluation": EVALUATION | {"every": 10}, "schedule": {"save_every": 20}}, "take save_every out"),
    ({"schedule": {"average": 3}}, "average 3 needs as many checkpoints; keep is 2"),
    ({"schedule": {"average": 2}, "adapter": "full"}, "average is for adapters"),
    ({"adapter": {"method": "full", "r": 4}}, "method full trains every weight"),
    ({"adapter": {"method": "full", "compress": 4}}, "method full trains every weight"),
    ({"adapter": "lorra"}, "unknown adapter method 'lorra'; did you mean 'lora'?"),
    ({"strategy": "score-head", "adapter": {"method": "lora", "compress": 4}}, "a score-head ends as a whole model"),
    ({"start": "nowhere"}, "start goes on with an adapter as it is"),
    ({"start": "nowhere", "adapter": None}, "start: 'nowhere' is not there"),
    ({"model": "./nowhere"}, "model: './nowhere' is not there"),
    ({"fsdp_config": "f.json"}, "fsdp_config without fsdp would be ignored"),
    ({"fsdp": "full_shard", "schedule": {"average": 2}}, "average needs the whole model in each process"),
    ({"fsdp": "full_shard", "strategy": "score-head", "prompt": None}, "merged by a process that has it whole"),
    ({"fsdp": "full_shard", "deepspeed": "d.json"}, "deepspeed and fsdp exclude one another"),
    ({"deepspeed": "d.json"}, "deepspeed: 'd.json' is not there"),
    (
        {"prompt": "setwise"},
        "prompt 'setwise' is answered by identifier; strategy 'pointwise' trains",
    ),
    ({"prompt": "pointwise-yes-on"}, "unknown prompt 'pointwise-yes-on'; did you mean 'pointwise-yes-no'?"),
    ({"prompt": "mine.yaml"}, "cannot read prompt file"),
    ({"curriculum": 2}, "curriculum: "),
    ({"dtype": "float16"}, "unknown dtype 'float16'; "),
]

OPTIONS = [
    ({"loss": {"name": "ranknet", "tempreature": 2}}, "unknown ranknet option 'tempreature'"),
    (
        {"loss": {"name": "pg_rank", "generator": 1}},
        "its random numbers come from the recipe's seed; take generator out",
    ),
    ({"loss": {"name": "pg_rank", "samples": 1}}, "the leave-one-out baseline needs 2 or more"),
    ({"loss": {"name": "pg_rank", "measure": "nDGC"}}, "nDGC"),
    ({"loss": {"name": "approx_ndcg", "temperature": "hot"}}, "approx_ndcg option temperature='hot'"),
    ({"loss": {"name": "ranknet", "reduction": "sum"}}, "take reduction out"),
    ({"adapter": {"method": "lora", "lora_alfa": 4}}, "unknown lora option 'lora_alfa'; did you mean 'lora_alpha'?"),
    ({"adapter": {"method": "rslora", "use_rslora": False}}, "rslora sets use_rslora itself"),
    ({"schedule": {"optimizer": "adamw_troch"}}, "unknown optimizer 'adamw_troch'; did you mean 'adamw_torch'?"),
    ({"schedule": {"optimizer": "galore_adamw"}}, "galore_adamw needs it, as all-linear"),
    ({"schedule": {"optimizer_targets": "all-linear"}}, "adamw_torch would ignore it"),
    (
        {"schedule": {"optimizer": "galore_adamw", "optimizer_targets": "all-linear"}},
        "optimizer galore_adamw trains whole weights; give adapter: full",
    ),
    ({"fsdp": "full_shard"}, "fsdp shares a model among processes; start with: accelerate launch"),
]
LIBRARIES = [
    ({"optimizer": "galore_adamw", "optimizer_targets": "all-linear"}, "galore_torch: pip install galore-torch"),
    ({"optimizer": "apollo_adamw", "optimizer_targets": "all-linear"}, "apollo_torch: pip install apollo-torch"),
    ({"optimizer": "lomo"}, "lomo_optim: pip install lomo-optim"),
    ({"optimizer": "paged_adamw_8bit"}, "bitsandbytes: pip install bitsandbytes"),
    ({"optimizer": "schedule_free_adamw"}, "schedulefree: pip install schedulefree"),
    ({"optimizer": "adamw_torch_4bit"}, "torchao: pip install torchao"),
]


def saved(folder: Path, model: Path, changes: dict[str, Any]) -> Path:
    """A sound recipe with whole keys changed; None takes one out."""
    made = {"adapter": "lora", "loss": "softmax"} | recipe(model) | changes
    return save_recipe(folder, {key: value for key, value in made.items() if value is not None})


def test_fsdp_is_refused_where_accelerate_would_ignore_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    path = saved(tmp_path, tiny_model, {"fsdp": "full_shard"})
    with pytest.raises(InputError, match="on a CPU accelerate would ignore it"):
        check_options(read_recipe(path))


@pytest.mark.parametrize(("changes", "why"), STRUCTURE, ids=[str(changes)[:60] for changes, _ in STRUCTURE])
def test_mistakes(tmp_path: Path, tiny_model: Path, cli: Cli, changes: dict[str, Any], why: str | None) -> None:
    path = saved(tmp_path, tiny_model, changes)
    if why is None:
        read_recipe(path)
        return
    done = cli("train", path, "--out", tmp_path / "out")
    assert_error(done, why)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("changes", "why"), OPTIONS, ids=[str(changes)[:60] for changes, _ in OPTIONS])
def test_mistakes_that_a_library_finds(
    tmp_path: Path, tiny_model: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], why: str
) -> None:
    """Before data is read, and by --check as well."""
    import rerank.training.train as module

    monkeypatch.setattr(module, "read_pools", lambda *_: pytest.fail("data was read"))
    path = saved(tmp_path, tiny_model, changes)
    for more in ((), ("--check",)):
        assert_error(cli("train", path, "--out", tmp_path / "out", *more), why)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("schedule", "why"), LIBRARIES, ids=[why.partition(":")[0] for _, why in LIBRARIES])
def test_an_optimiser_without_its_library(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, schedule: dict[str, Any], why: str
) -> None:
    from importlib.util import find_spec

    absent = why.partition(":")[0]
    monkeypatch.setattr("rerank.training.checks.find_spec", lambda name: None if name == absent else find_spec(name))
    read = read_recipe(saved(tmp_path, tiny_model, {"schedule": schedule, "adapter": "full"}))
    with pytest.raises(BackboneError, match=f"optimizer {schedule['optimizer']} needs {why}"):
        check_options(read)


def test_every_optimiser_of_transformers_is_known_to_need_a_library_or_none(tmp_path: Path, tiny_model: Path) -> None:
    """Those that transformers refuses to make for want of a library are refused by name before."""
    import torch
    from transformers import Trainer, TrainingArguments
    from transformers.training_args import OptimizerNames

    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    for name in OptimizerNames:
        projects = name.value.startswith(("galore", "apollo"))
        options = {"optim_target_modules": "all-linear"} if projects else {}
        try:
            args = TrainingArguments(str(tmp_path), optim=name.value, use_cpu=True, report_to=[], **options)
            Trainer.get_optimizer_cls_and_kwargs(args, model)
        except (ImportError, ValueError) as error:
            if isinstance(error, ValueError) and "import" not in str(error) and "install" not in str(error).lower():
                continue
            targets = {"optimizer_targets": "all-linear"} if projects else {}
            changes = {"schedule": {"optimizer": name.value, **targets}, "adapter": "full"}
            read = read_recipe(saved(tmp_path, tiny_model, changes))
            with pytest.raises(BackboneError, match=f"optimizer {name.value} needs .*: pip install"):
                check_options(read)


def test_a_library_for_many_processes_that_is_not_installed(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d.json").write_text("{}")
    read = read_recipe(saved(tmp_path, tiny_model, {"deepspeed": "d.json"}))
    monkeypatch.setattr("rerank.training.checks.find_spec", lambda name: None if name == "deepspeed" else object())
    with pytest.raises(BackboneError, match="deepspeed needs deepspeed: pip install deepspeed"):
        check_options(read)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="a batch of 8 lists cannot be shared by 3 processes"):
        check_options(read_recipe(saved(tmp_path, tiny_model, {})))
    monkeypatch.setattr("rerank.training.checks.find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(BackboneError, match=r"training needs matplotlib: pip install 'rerank-llm\[train\]'"):
        check_options(read_recipe(saved(tmp_path, tiny_model, {})))


def test_labels_that_the_loss_cannot_read_are_told_before_the_model_is_loaded(tmp_path: Path, tiny_model: Path) -> None:
    save_lists(tmp_path / "lists.jsonl")
    text = (tmp_path / "lists.jsonl").read_text()
    (tmp_path / "lists.jsonl").write_text(text.replace('"label": 1', '"label": 3'))
    read = read_recipe(saved(tmp_path, tiny_model, {"loss": "bce"}))
    pools = [(source, read_pools(source, tmp_path)) for source in read.data]
    with pytest.raises(InputError, match=r"lists.jsonl: bce wants labels from 0 to 1 and was given 0 to 3"):
        check_labels(read, pools)
    check_labels(read_recipe(saved(tmp_path, tiny_model, {"loss": {"name": "bce", "threshold": 2}})), pools)


def test_an_evaluation_without_judgments(tmp_path: Path, tiny_model: Path, cli: Cli) -> None:
    save_lists(tmp_path / "lists.jsonl")
    bare = (tmp_path / "lists.jsonl").read_text().replace(', "label": 0', "").replace(', "label": 1', "")
    (tmp_path / "bare.jsonl").write_text(bare)
    path = saved(tmp_path, tiny_model, {"evaluation": {"dataset": "bare.jsonl"}, "model": "no-such/model"})
    assert_error(cli("train", path, "--out", tmp_path / "out"), "evaluation: bare.jsonl has no judgments")


@pytest.mark.parametrize("text", ["[]", "a: [", "\xff", None])
def test_what_is_no_recipe(tmp_path: Path, cli: Cli, text: str | None) -> None:
    if text is not None:
        (tmp_path / "r.yaml").write_bytes(text.encode("latin-1"))
    why = {"[]": "must be a mapping", None: "cannot read the recipe"}.get(text, "is not YAML")
    assert_error(cli("train", tmp_path / "r.yaml"), why)


def test_a_recipe_is_read_without_torch(tmp_path: Path, tiny_model: Path) -> None:
    path = saved(tmp_path, tiny_model, {"evaluation": EVALUATION, "strategy": "first", "write": {"factor": 0.1}})
    code = (
        "import sys\nfrom rerank.training.recipe import read_recipe\nread_recipe(sys.argv[1])\n"
        "assert not {'torch', 'transformers', 'peft'} & sys.modules.keys(), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_paths_are_relative_to_the_recipe(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rerank.prompts import load_prompt

    monkeypatch.chdir(tiny_model)
    own = load_prompt("pointwise-yes-no").model_dump(mode="json") | {"name": "mine"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own))
    read = read_recipe(saved(tmp_path, tiny_model, {"prompt": "mine.yaml"}))
    assert read.asked.name == "mine"


def test_full_ranking_cuts_passages_as_its_strategy_does(tmp_path: Path, tiny_model: Path) -> None:
    changes = {"strategy": "full-ranking", "loss": None, "evaluation": EVALUATION}
    read = read_recipe(saved(tmp_path, tiny_model, changes))
    assert read.passage_tokens == read.ranker().passage_tokens == 100  # type: ignore[attr-defined]
    assert read.write is not None
    assert read_recipe(saved(tmp_path, tiny_model, changes | {"passage_tokens": 30})).passage_tokens == 30


def test_every_strategy_has_a_prompt_that_fits() -> None:
    for strategy in PROMPTS:
        made: dict[str, Any] = {"name": "x", "strategy": strategy, "data": [DATA]}
        if strategy not in WRITERS:
            made["loss"] = "ranknet"
        elif strategy != "full-ranking":
            made["write"] = {}
        assert Recipe.model_validate(made).asked.name == PROMPTS[strategy]
