"""What a build reads, brought to this machine: sources, evaluation sets, and the teacher's model."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from models.benchmarks.sets import published_set
from models.config import SourceConfig, TeacherConfig, VLIRConfig
from models.errors import ConfigError
from models.vlir.sources import open_source
from tasks.benchmark_data import check_set, fetch_set
from tasks.model_source import check_model, find_model
from tasks.settings import Settings
from tasks.source_files import local_source
from tasks.uris import S3_SCHEME

_REGISTERED = "models:/"
