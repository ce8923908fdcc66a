"""What a caller asks of every reader alike."""

from __future__ import annotations

from pydantic import Field

from corrkd.settings import ReadingSettings


class ReadOptions(ReadingSettings):
    """How a dataset file is to be read, and for what."""

    targets: bool = Field(True, description="whether scores or labels are needed")
