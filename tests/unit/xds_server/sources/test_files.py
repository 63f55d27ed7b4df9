import os

from xds_server.sources import files


def test_a_folder_is_read_by_name_without_hidden_and_other_files(tmp_path):
    for name in ("b.yml", "a.yaml", "c.json", "notes.txt", ".hidden.yaml", "sub/d.yaml", ".git/e.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'{{"name": "{name}"}}', encoding="utf-8")
    documents, findings = files.load([str(tmp_path)])
    assert [document.content["name"] for document in documents] == ["a.yaml", "b.yml", "c.json", "sub/d.yaml"]
    assert findings == ()


def test_a_file_named_twice_is_read_once(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\n", encoding="utf-8")
    documents, _ = files.load([str(path), str(tmp_path)])
    assert [document.content for document in documents] == [{"a": 1}]


def test_positions_carry_the_path_as_given(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text("a: 1\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (document,), _ = files.load(["a.yaml"])
    assert str(document.position("a")) == "a.yaml:1:1"


def test_what_cannot_be_read_is_one_finding_each_and_the_rest_is_read(tmp_path):
    (tmp_path / "good.yaml").write_text("a: 1\n", encoding="utf-8")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\n")
    os.symlink(tmp_path / "nowhere", tmp_path / "broken.yaml")
    missing = str(tmp_path / "missing.yaml")
    documents, findings = files.load([str(tmp_path), missing])
    assert [document.content for document in documents] == [{"a": 1}]
    assert [(finding.code, finding.message) for finding in findings] == [
        ("MESH0001", f"cannot read {tmp_path}/broken.yaml: No such file or directory"),
        ("MESH0001", f"cannot read {tmp_path}/latin.yaml: is not UTF-8 text"),
        ("MESH0001", f"cannot read {missing}: no such file or folder"),
    ]


def test_pipes_and_huge_files_in_a_folder_are_findings(tmp_path, monkeypatch):
    monkeypatch.setattr("xds_server.sources.files.MAX_FILE_BYTES", 1 << 20)
    os.mkfifo(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_bytes(b"#" * (1 << 20) + b"x")
    documents, findings = files.load([str(tmp_path)])
    assert () == documents
    assert ["is not a file", "is larger than 1 MiB"] == [finding.message.partition(": ")[2] for finding in findings]


def test_a_pipe_that_is_named_is_read(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b"a: 1")
    os.close(writing)
    (document,), _ = files.load([f"/dev/fd/{reading}"])
    os.close(reading)
    assert {"a": 1} == document.content
