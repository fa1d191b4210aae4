import json

import pytest

from ingot.cli.optimize import print_result
from ingot.compress.quantize.left_in_float import FloatNode
from ingot.search.result import Result


def test_inspect_lists_what_can_be_compressed(run, files):
    found = run("inspect", files / "model.onnx", "--json").json

    assert found["operators"]["Conv"] == 2
    assert {row["method"] for row in found["compressible"]} >= {"int8 static", "int8 dynamic"}


def test_inspect_prints_layers_for_people(run, files):
    done = run("inspect", files / "model.onnx", "--layers")

    assert done.code == 0
    assert "What can be compressed" in done.out
    assert "Layers" in done.out


def test_compress_writes_a_model_and_its_recipe(run, files, tmp_path):
    done = run("compress", files / "model.onnx", "--data", files / "data.npz",
               "--method", "quantize-static", "--set", "observer=min-max",
               "--out", tmp_path / "small", "--json")  # fmt: skip

    assert done.code == 0
    assert done.json["size_bytes"] == sum(
        (tmp_path / "small" / "model" / name).stat().st_size for name in ("model.onnx",)
    )
    assert 'observer = "min-max"' in (tmp_path / "small" / "recipe.toml").read_text()


def test_compress_takes_the_recipe_that_it_wrote(run, files, tmp_path):
    words = ("compress", files / "model.onnx", "--data", files / "data.npz", "--json")
    first = run(*words, "--method", "quantize-weights", "--out", tmp_path / "a").json

    second = run(*words, "--recipe", tmp_path / "a" / "recipe.toml", "--out", tmp_path / "b").json

    assert first["model"] == second["model"]


def test_compress_names_what_stays_in_float(run, files, tmp_path):
    words = ("compress", files / "model.onnx", "--data", files / "data.npz",
             "--method", "quantize-static", "--set", 'skip=["Conv_c1"]')  # fmt: skip
    listed = run(*words, "--out", tmp_path / "a", "--json").json["left_in_float"]
    printed = run(*words, "--out", tmp_path / "b").out

    assert [row["name"] for row in listed if row["reason"] == "named in skip"] == ["Conv_c1"]
    assert "Left in float: " in printed
    assert "named in skip: 1 Conv" in printed


def test_compress_dry_run_changes_nothing(run, files, tmp_path):
    done = run("compress", files / "model.onnx", "--data", files / "data.npz",
               "--method", "quantize-static", "--out", tmp_path / "small", "--dry-run")  # fmt: skip

    assert done.code == 0
    assert "[[method]]" in done.out
    assert not (tmp_path / "small").exists()


def test_compress_dry_run_refuses_a_method_without_the_data_it_reads(run, files, tmp_path):
    done = run("compress", files / "model.onnx", "--method", "quantize-static",
               "--out", tmp_path / "small", "--dry-run")  # fmt: skip

    assert done.code == 2
    assert "must be given data" in done.err


def test_a_method_with_a_typo_gets_the_nearest(run, files, tmp_path):
    done = run("compress", files / "model.onnx", "--data", files / "data.npz",
               "--method", "quantise-static", "--out", tmp_path / "small")  # fmt: skip

    assert done.code == 2
    assert "quantize-static" in done.err


def test_compare_exits_0_and_writes_evidence_when_the_claims_hold(run, files, best, tmp_path):
    done = run("compare", files / "model.onnx", best, "--data", files / "data.npz",
               "--require", "agreement >= 0.9", "--threads", 1,
               "--out", tmp_path / "proof", "--json")  # fmt: skip

    assert done.code == 0
    assert done.json["predicate"]["verdicts"][0]["passed"]
    assert json.loads((tmp_path / "proof" / "evidence.json").read_text()) == done.json
    assert (tmp_path / "proof" / "report.html").is_file()


def test_the_two_models_of_a_comparison_may_run_on_engines_of_their_own(run, files, best):
    words = ("compare", files / "model.onnx", best, "--data", files / "data.npz", "--threads", 1)

    done = run(*words, "--engine", "onnxruntime", "--baseline-engine", "nope")

    assert done.code == 2
    assert "An engine must be installed under its name; got 'nope'" in done.err


def test_compare_names_the_nodes_at_which_answers_part_when_asked_why(run, files, best):
    done = run("compare", files / "model.onnx", best, "--data", files / "data.npz", "--why")
    facts = run("compare", files / "model.onnx", best, "--data", files / "data.npz", "--why",
                "--json")  # fmt: skip

    assert "Where the answers part" in done.out
    nodes = facts.json["nodes"]
    assert nodes
    assert {"node", "operator", "before", "after", "lasting"} == set(nodes[0])
    assert all(node["node"][:8] in done.out for node in nodes[:1])


def test_compare_exits_1_when_a_claim_does_not_hold(run, files, best):
    done = run("compare", files / "model.onnx", best, "--data", files / "data.npz",
               "--require", "size ratio <= 0.001", "--threads", 1)  # fmt: skip

    assert done.code == 1
    assert "size ratio <= 0.001" in done.out


def test_a_claim_with_a_typo_gets_the_nearest_metric(run, files):
    done = run("optimize", files / "model.onnx", "--data", files / "data.npz",
               "--require", "acuracy drop <= 0.01")  # fmt: skip

    assert done.code == 2
    assert "accuracy" in done.err


def test_a_sample_too_small_for_the_claim_is_refused_with_the_size_it_takes(run, files, tmp_path):
    done = run("optimize", files / "model.onnx", "--data", files / "data.npz",
               "--require", "accuracy drop <= 0.001", "--out", tmp_path / "best")  # fmt: skip

    assert done.code == 2
    assert "at least 3,6" in done.err
    assert not (tmp_path / "best").exists()


def test_optimize_dry_run_lists_candidates_and_writes_nothing(run, files, tmp_path):
    done = run("optimize", files / "model.onnx", "--data", files / "data.npz",
               "--out", tmp_path / "best", "--dry-run", "--json")  # fmt: skip

    assert {row["recipe"] for row in done.json} >= {"unchanged", "QuantizeStatic"}
    assert not (tmp_path / "best").exists()


def test_optimize_writes_model_evidence_recipe_and_report(best):
    there = {path.name for path in best.iterdir()}

    assert there == {"model", "evidence.json", "recipe.toml", "report.html", "report.json"}


def test_optimize_prints_what_stays_in_float_by_reason(tmp_path, capsys):
    left = tuple(FloatNode(name, "Softmax", "no integer kernel", 0) for name in "ab")

    print_result(Result((), None, None, tmp_path, "", "accuracy", "batch 1", (), left))

    assert "Left in float: no integer kernel: 2 Softmax." in capsys.readouterr().out


def test_optimize_exits_1_when_nothing_keeps_the_claims(run, files, best, tmp_path, monkeypatch):
    monkeypatch.setenv("INGOT_HOME", str(files / "home"))  # models and times are there already
    done = run("optimize", files / "model.onnx", "--data", files / "data.npz", "--threads", 1,
               "--require", "size ratio <= 0.001", "--out", tmp_path / "out")  # fmt: skip

    assert done.code == 1
    assert "None of" in done.out
    assert (tmp_path / "out" / "report.html").is_file()
    assert not (tmp_path / "out" / "evidence.json").exists()


@pytest.mark.parametrize("words", [("--shape", "0x4"), ("--shape", "big"), ("--buckets", "a,b")])
def test_shapes_and_buckets_that_are_none_are_refused(run, files, words):
    done = run("optimize", files / "model.onnx", "--data", files / "data.npz", *words)

    assert done.code == 2
    assert "must be" in done.err


def test_buckets_are_refused_for_a_model_without_a_mask(run, files):
    done = run("optimize", files / "model.onnx", "--data", files / "data.npz", "--buckets", "4,8")

    assert done.code == 2
    assert "attention_mask" in done.err


def test_report_writes_the_page_again(run, best, tmp_path):
    done = run("report", best, "--out", tmp_path / "page.html", "--json")

    assert done.json == {"report": str(tmp_path / "page.html")}
    assert (tmp_path / "page.html").read_text() == (best / "report.html").read_text()


def test_report_of_a_folder_without_evidence_says_what_to_run(run, tmp_path):
    done = run("report", tmp_path)

    assert done.code == 2
    assert "Run ingot optimize" in done.err
