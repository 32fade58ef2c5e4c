"""Tests that runs and versions are recorded exactly once, that none is lost, and that every version is verified.

The models are linear and written without training. The store, the uploads and the verification are real.
"""

import dataclasses
import json
from pathlib import Path

import mlflow
import pytest
from linear_models import assert_exactly_once, only, state, write_model

from visionpipe.errors import RegistryError
from visionpipe.files import write_json
from visionpipe.stages.register import golden, register
from visionpipe.tracking.receipt import RECEIPT, judge
from visionpipe.tracking.registry import publish
from visionpipe.tracking.runs import complete, record
from visionpipe.tracking.store import connect
from visionpipe.tracking.tags import version_tags

# Versions ----------------------------------------------------------------------------------------------


def test_a_failed_gate_registers_nothing_and_says_so(params, capsys):
    write_model("one", params, mistaken=2)
    gate = dataclasses.replace(params.register.gate, accuracy=0.9)
    register(
        dataclasses.replace(only(params, "one"), register=dataclasses.replace(params.register, gate=gate))
    )
    assert_exactly_once(params, ["one"], versions=0)
    receipt = json.loads(RECEIPT.read_text())
    assert (receipt["passed"], receipt["chosen"]) == (False, None)
    said = capsys.readouterr().out
    assert "NOTHING WAS REGISTERED" in said
    assert "is below 0.9" in said


@pytest.mark.parametrize(("over_majority", "passes"), [(0.0, True), (0.25, True), (0.26, False)])
def test_the_gate_can_lie_above_the_most_frequent_class(params, over_majority, passes):
    write_model(
        "one", params, mistaken=2
    )  # right for half of the images; each of the four classes has a quarter
    gate = dataclasses.replace(params.register.gate, over_majority=over_majority)
    params = dataclasses.replace(params, register=dataclasses.replace(params.register, gate=gate))
    judgement = judge(only(params, "one"))["models"]["one"]
    assert judgement["passed"] == passes
    assert passes or judgement["failures"] == [
        "validation accuracy 0.5000 is below 0.5100, the share of the most frequent class 0.2500 "
        "plus over_majority 0.26"
    ]


def test_an_upload_that_arrives_damaged_is_never_registered(params, monkeypatch):
    write_model("one", params)
    upload = mlflow.MlflowClient.log_model_artifacts

    def damaging(client, model_id, local_dir):
        upload(client, model_id, local_dir)
        for file in Path("mlartifacts").rglob(f"{model_id}/**/model.onnx"):
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_model_artifacts", damaging)
        with pytest.raises(RegistryError, match=r"model.onnx was changed by the upload"):
            register(only(params, "one"))
    assert_exactly_once(params, ["one"], versions=0)
    register(only(params, "one"))
    assert_exactly_once(params, ["one"], versions=1)


def test_an_upload_that_answers_differently_is_never_registered(params):
    write_model("one", params)
    store = connect(params.tracking)
    run_id = record(store, Path("models/one"))
    right = golden("one")
    wrong = dataclasses.replace(right, answers=[*right.answers[:-1], right.answers[0] | {"label": "red"}])
    assert wrong != right
    with pytest.raises(RegistryError, match="does not answer like the evaluated model"):
        publish(store, run_id, "one", Path("artifacts/one"), "# card", wrong, version_tags("one"))
    assert_exactly_once(params, ["one"], versions=0)


# Runs --------------------------------------------------------------------------------------------------


def test_another_model_from_the_same_training_key_gets_a_separate_run_that_says_why(params):
    write_model("one", params)
    store = connect(params.tracking)
    first = record(store, Path("models/one"))
    made = json.loads(Path("models/one/lineage.json").read_text())
    write_json(Path("models/one/lineage.json"), made | {"lineage_id": "2" * 64, "model_sha256": "3" * 64})
    second = record(store, Path("models/one"))
    assert len({first, second, record(store, Path("models/one"))}) == 2
    assert "another model" in store.client.get_run(second).data.tags["note"]
    assert "note" not in store.client.get_run(first).data.tags


def test_a_history_longer_than_one_request_arrives_whole_and_once(params):
    write_model("one", params, epochs=450)
    store = connect(params.tracking)
    run_id = record(store, Path("models/one"))
    for metric in ("accuracy", "loss", "val_accuracy"):
        assert steps(store, run_id, metric) == list(range(1, 451))


def test_a_history_whose_logging_was_cut_off_is_completed(params, monkeypatch):
    write_model("one", params, epochs=450)
    store = connect(params.tracking)
    sent, send = [], store.client._tracking_client.store.log_batch

    def cut_off(**request):
        sent.append(len(request["metrics"]))
        if len(sent) == 4:  # after the parameters and two parts of the history
            raise ConnectionError("cut off")
        return send(**request)

    with monkeypatch.context() as patch:
        patch.setattr(store.client._tracking_client.store, "log_batch", cut_off)
        with pytest.raises(RegistryError, match="cut off"):
            record(store, Path("models/one"))
    assert sum(sent[:3]) > 0
    run_id = record(store, Path("models/one"))
    for metric in ("accuracy", "loss", "val_accuracy"):
        assert steps(store, run_id, metric) == list(range(1, 451))


def steps(store, run_id: str, metric: str) -> list[int]:
    return sorted(point.step for point in store.client.get_metric_history(run_id, metric))


def test_a_new_evaluation_replaces_the_numbers_of_the_old_one(params):
    write_model("one", params)
    store, report = connect(params.tracking), Path("reports/one/metrics.json")
    complete(store, record(store, Path("models/one")), report.parent, {})
    metrics = json.loads(report.read_text())
    metrics["test"]["accuracy"] = 0.125
    write_json(report, metrics)
    for _ in range(2):
        complete(store, record(store, Path("models/one")), report.parent, {})
    assert state(params).run("one").data.metrics["test.accuracy"] == 0.125
    assert len(state(params).runs) == 1
