"""Label Studio: its JSON of tasks, with the pairwise template.

`CONFIG` is the labelling interface to paste into a project's settings; annotations made there
come back through `from_tasks`, and ours appear there as finished ones.

Label Studio knows no pseudonyms: it refuses an unknown `completed_by` and sets `created_at` itself.
What it keeps word for word is `result`, so ours stand there, in the `meta` of the choice.
"""

import json
from typing import Any

from annotation.formats.records import Record, RecordedLabel, prompt_text
from data_contracts.errors import UserError
from data_contracts.ratings import Rating, SafetyLabel

CONFIG = """\
<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="pick" toName="text1,text2"/>
  <Text name="text1" value="$text1"/>
  <Text name="text2" value="$text2"/>
  <Choices name="rating" toName="prompt" choice="single" required="true">
    <Choice value="significantly_better"/>
    <Choice value="better"/>
    <Choice value="slightly_better"/>
    <Choice value="negligibly_better"/>
  </Choices>
  <Choices name="safety_label" toName="prompt" choice="single">
    <Choice value="chosen_safe_other_unsafe"/>
    <Choice value="both_safe"/>
    <Choice value="both_unsafe"/>
  </Choices>
  <TextArea name="edited_response" toName="prompt" rows="4"/>
</View>
"""

_SIDE_OF = {"a": "left", "b": "right"}
_PICK_OF = {side: pick for pick, side in _SIDE_OF.items()}


def to_tasks(records: list[Record]) -> str:
    """Tasks with annotations, as `Import` takes them."""
    return json.dumps([_task(record) for record in records], ensure_ascii=False, indent=1)


def from_tasks(text: str) -> list[Record]:
    """The records of an export in Label Studio's JSON format.

    Raises UserError for a task without our columns, or an annotation without choice or rating.
    """
    return [_record(task) for task in json.loads(text)]


def _task(record: Record) -> dict[str, Any]:
    fields = record.comparison()
    fields["text1"] = fields.pop("response_a")
    fields["text2"] = fields.pop("response_b")
    return {
        "data": {**fields, "prompt": prompt_text(record)},
        "annotations": [_annotation(label) for label in record.labels],
    }


def _annotation(label: RecordedLabel) -> dict[str, Any]:
    side = _SIDE_OF[label.pick]
    origin = label.model_dump(mode="json", include={"annotator", "created_at"})
    result = [
        {
            "from_name": "pick",
            "to_name": "text1,text2",
            "type": "pairwise",
            "value": {"selected": side},
            "meta": origin,
        },
        _choices("rating", label.rating),
    ]
    if label.safety_label is not None:
        result.append(_choices("safety_label", label.safety_label))
    if label.edited_response is not None:
        value = {"text": [label.edited_response]}
        result.append(_prompt_result("edited_response", "textarea", value))
    return {"result": result}


def _choices(name: str, choice: Rating | SafetyLabel) -> dict[str, Any]:
    return _prompt_result(name, "choices", {"choices": [choice.value]})


def _prompt_result(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"from_name": name, "to_name": "prompt", "type": kind, "value": value}


def _record(task: dict[str, Any]) -> Record:
    data = dict(task["data"])
    data.pop("prompt", None)
    try:
        data["response_a"], data["response_b"] = data.pop("text1"), data.pop("text2")
    except KeyError as missing:
        raise UserError(
            f"Task {task.get('id', '?')} has no field {missing}",
            "Import tasks that `rlhf annotations export --format label_studio` wrote",
        ) from None
    kept = [a for a in task.get("annotations", []) if not a.get("was_cancelled")]
    return Record.model_validate({**data, "labels": [_label(task, a) for a in kept]})


def _label(task: dict[str, Any], annotation: dict[str, Any]) -> dict[str, Any]:
    results = {result["from_name"]: result for result in annotation["result"]}
    if "pick" not in results or "rating" not in results:
        raise UserError(
            f"An annotation of task {task.get('id', '?')} has no choice, or no rating",
            "Complete it in Label Studio, or cancel it there",
        )
    values = {name: result["value"] for name, result in results.items()}
    return {
        **_origin(annotation, results["pick"].get("meta", {})),
        "pick": _PICK_OF[values["pick"]["selected"]],
        "rating": values["rating"]["choices"][0],
        "safety_label": values.get("safety_label", {}).get("choices", [None])[0],
        "edited_response": values.get("edited_response", {}).get("text", [None])[0],
    }


def _origin(annotation: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """Who said it and when: ours where it came from us, else Label Studio's own."""
    if "annotator" in meta:
        return {"annotator": meta["annotator"], "created_at": meta.get("created_at")}
    who = annotation["completed_by"]
    name = str(who["email"] if isinstance(who, dict) else who)
    return {"annotator": name, "created_at": annotation["created_at"]}
