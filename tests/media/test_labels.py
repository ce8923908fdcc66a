"""The clips of a folder and their labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrkd.errors import CorrKDError
from corrkd.media.labels import list_clips


def folder_of(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"")
    return path


def test_a_folder_without_labels_is_its_recordings(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path,
        "b/x.mp4",
        "a.wav",
        "a.txt",
        "alone.txt",
        "b/x.vtt",
        "c/x.MOV",
        "readme.md",
        ".hidden.mp4",
    )
    clips = list_clips(folder)
    assert [(clip.id, clip.name) for clip in clips.rows] == [
        ("a", "a.wav"),
        ("alone", "alone.txt"),
        ("b/x.mp4", "b/x.mp4"),
        ("c/x.MOV", "c/x.MOV"),
    ]
    assert clips.columns == ()


def test_labels_list_the_clips_and_their_facts(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a.mp4", "sub/b.wav")
    (tmp_path / "labels.csv").write_text(
        '\ufefffile;text;label;score;person;split;mood;order\na.mp4;"so; '
        'good";pos;1.5;ann;train;x;1\n'
        "sub/b.wav;;neg;-2;;dev;x;2\n;only text;neg;0;bob;TEST;x;3\n",
        "utf-8",
    )
    clips = list_clips(folder)
    assert [clip.id for clip in clips.rows] == ["a", "b", "row-2"]
    assert clips.columns == ("label", "split", "order", "score", "person")
    assert clips.rows[0].text == "so; good"
    assert dict(clips.rows[1].facts) == {
        "label": "neg",
        "split": "dev",
        "order": "2",
        "score": "-2",
    }
    assert clips.rows[2].path is None
    assert clips.notes == ("labels.csv: columns left out: mood",)


def test_the_layout_of_mmsa_fet(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "Raw/v1/0001.mp4", "Raw/v1/0002.mkv")
    (tmp_path / "label.csv").write_text(
        "video_id,clip_id,text,label,label_T,label_A,label_V,annotation,mode\n"
        "v1,0001,well done,0.8,1,0.6,0.4,Positive,train\nv1,0002,oh "
        "no,-1,-1,-0.6,-1,Negative,valid\n",
        "utf-8",
    )
    clips = list_clips(folder)
    assert [(clip.id, clip.name) for clip in clips.rows] == [
        ("v1$_$0001", "Raw/v1/0001.mp4"),
        ("v1$_$0002", "Raw/v1/0002.mkv"),
    ]
    first = clips.rows[0].facts
    assert (first["score"], first["label"], first["split"], first["video"]) == (
        "0.8",
        "Positive",
        "train",
        "v1",
    )
    assert {"label_T", "label_A", "label_V"} <= set(clips.columns)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.mp4,1\n", "a column `file` is needed"),
        ("file,label\n", "no rows"),
        ("file,label\na.mp4,1\nb.mp4,\n", "row 3 has no label, other rows have one"),
        ("file,score\na.mp4,good\n", "row 2: score 'good' is not a number"),
        ("file,split\na.mp4,half\n", "row 2: split 'half'"),
        ("file,text\na.mp4,so, good\n", "row 2 has 3 cells, the header 2"),
        ("file,file\na.mp4,b.mp4\n", "column 'file' appears twice"),
        ("file,text,label\n,,1\n", "row 2 has neither a file nor a text"),
        ('file,text\na.mp4,"open\n', "not readable CSV"),
    ],
)
def test_wrong_labels_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text, "utf-8")
    with pytest.raises(CorrKDError) as caught:
        list_clips(tmp_path)
    assert message in str(caught.value)


def test_absent_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorrKDError, match="no such folder"):
        list_clips(tmp_path / "nowhere")
    with pytest.raises(CorrKDError, match="no recordings in it"):
        list_clips(tmp_path)
