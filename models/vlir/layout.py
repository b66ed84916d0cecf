"""The names in the folder that build_vlir makes (:mod:`models.vlir.build` says what they hold)."""

RECORDS, VALIDATION, REJECTED, QUESTIONS = "records", "validation", "rejected", "questions"
MANIFEST, FAULTS, HELD_OUT = "manifest.json", "faults.jsonl", "held_out.parquet"
