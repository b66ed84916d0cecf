"""Benchmarks in miniature: two rows of each, in Parquet files of the true schema."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from models.benchmarks.published import PublishedSet, get_published
from models.presets import load_preset
from models.run_config import BenchmarkRun

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(colour: str, size: tuple[int, int] = (40, 30)) -> dict:
    """A picture as the hub stores it."""
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, format="PNG")
    return {"bytes": data.getvalue(), "path": f"{colour}.png"}


MMMU_ROW = {
    "id": "validation_Art_Theory_3",
    "question": "Which is older, <image 1> or <image 2>?",
    "options": "['the first', 'the second']",
    "explanation": "",
    **{f"image_{number}": None for number in range(1, 8)},
    "image_1": picture("red"),
    "image_2": picture("green"),
    "img_type": "['Paintings']",
    "answer": "A",
    "topic_difficulty": "Easy",
    "question_type": "multiple-choice",
    "subfield": "Art",
}
# Each benchmark's split, and two rows of it.
ROWS = {
    "mme": (
        "test",
        [
            {
                "question_id": "OCR/1.png",
                "image": picture("red"),
                "question": f"Is it {colour}? Please answer yes or no.",
                "answer": answer,
                "category": "OCR",
            }
            for colour, answer in (("red", "Yes"), ("blue", "No"))
        ],
    ),
    "mmmu": (
        "validation",
        [
            MMMU_ROW,
            {
                **MMMU_ROW,
                "id": "validation_Math_1",
                "image_2": None,
                "options": "[]",
                "answer": "['7', 'seven']",
                "question_type": "open",
            },
        ],
    ),
    "docvqa": (
        "DocVQA/validation",
        [
            {
                "questionId": str(number),
                "question": "Which year?",
                "question_types": ["handwritten"],
                "image": picture("white", (30, 60)),
                "docId": 7,
                "ucsf_document_id": "abc",
                "ucsf_document_page_no": "1",
                "answers": ["1999", "'99"],
                "data_split": "val",
            }
            for number in range(2)
        ],
    ),
    "scienceqa": (
        "ScienceQA-FULL/test",
        [
            {
                "image": shown,
                "question": "Which one is a metal?",
                "choices": ["glass", "tin"],
                "answer": 1,
                "hint": hint,
                **dict.fromkeys(("task", "grade", "topic", "category", "skill"), "x"),
                "subject": "natural science",
                "lecture": "Tin is a metal.",
                "solution": "It is B.",
            }
            for shown, hint in ((picture("grey"), ""), (None, "Look at the table."))
        ],
    ),
    "hallusionbench": (
        "image",
        [
            {
                "category": "VS",
                "subcategory": "chart",
                "visual_input": "1",
                "set_id": "0",
                "figure_id": "1",
                "sample_note": "",
                "question_id": str(number),
                "question": "Does the chart rise?",
                "gt_answer_details": "It falls.",
                "gt_answer": "0",
                "filename": "./VS/chart/0_1.png",
                "image": picture("red"),
            }
            for number in range(2)
        ],
    ),
    "mathvista": (
        "testmini",
        [
            {
                "pid": "1",
                "question": "How long is AB?",
                "image": "images/1.jpg",
                "decoded_image": picture("red"),
                "choices": choices,
                "unit": "cm",
                "precision": 1.0,
                "answer": "1.2",
                "question_type": question_type,
                "answer_type": "float",
                "metadata": {
                    **dict.fromkeys(
                        ("category", "context", "grade", "language", "source", "split", "task"), "x"
                    ),
                    "img_height": 30,
                    "img_width": 40,
                    "skills": ["geometry reasoning"],
                },
                "query": "Hint: round.\nQuestion: How long is AB? (Unit: cm)",
            }
            for choices, question_type in ((None, "free_form"), (["1.2", "1.3"], "multi_choice"))
        ],
    ),
    "mathvision": (
        "test",
        [
            {
                "id": str(number),
                "question": "How many?\n<image1>",
                "options": options,
                "image": "images/1.jpg",
                "decoded_image": picture("red"),
                "answer": "B",
                "solution": None,
                "level": 2,
                "subject": "counting",
            }
            for number, options in enumerate((["1", "2", "3", "4", "5"], ["A", "B", "C", "D", "E"]))
        ],
    ),
}
ROWS["mathvista"][1][1]["pid"] = "2"


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of a declared one."""
    if name == "image":
        return IMAGE
    if name.startswith("list<"):
        return pa.list_(arrow_type(name.removeprefix("list<").removesuffix(">")))
    if name.startswith("struct<"):
        fields = [
            field.split(": ", 1) for field in name.removeprefix("struct<").removesuffix(">").split(", ")
        ]
        return pa.struct([(field, arrow_type(kind)) for field, kind in fields])
    return {"string": pa.string(), "int8": pa.int8(), "int64": pa.int64(), "float64": pa.float64()}[name]


def schema_of(published: PublishedSet) -> pa.Schema:
    return pa.schema([(name, arrow_type(kind)) for name, kind in published.columns.items()])


def small(name: str) -> tuple[PublishedSet, str, list[dict]]:
    """The benchmark as if it had been published with its two rows here."""
    split, rows = ROWS[name]
    return replace(get_published(name), splits={split: len(rows)}), split, rows


def write(path: Path, rows: list[dict], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def file_name(split: str, shard: int = 0, num_shards: int = 1) -> str:
    return f"{split.rpartition('/')[2]}-{shard:05d}-of-{num_shards:05d}.parquet"


def mme_of_embedded_base(folder: Path, rows: list[dict], *, overrides: Sequence[str] = ()) -> BenchmarkRun:
    """A run of these rows of MME, asked directly of the embedded base on the reference engine."""
    published, split, _ = small("mme")
    write(folder / "mme" / file_name(split), rows, schema_of(published))
    preset = load_preset("tiny", ["engine.kind=transformers", *overrides])
    return BenchmarkRun(
        benchmark="mme",
        data_path=str(folder / "mme"),
        split=split,
        allow_partial=True,
        style="direct",
        model_path="embedded",
        look=preset.look,
        engine=preset.engine,
        seed=0,
    )
