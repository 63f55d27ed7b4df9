"""Build the wheel and the sdist once and look inside; install the wheel in an environment of its own."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ADAPTERS = sorted(path.relative_to(ROOT / "integrations").as_posix() for path in (ROOT / "integrations").rglob("*.py"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist; the wheel is built from the sdist, as an installer without a wheel would."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", out, ROOT], check=True, capture_output=True, timeout=300)
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    return wheel, sdist


@pytest.mark.slow
@pytest.mark.timeout(400)
class TestDistributions:
    def test_wheel_has_exactly_two_top_level_packages(self, built: tuple[Path, Path]) -> None:
        names = zipfile.ZipFile(built[0]).namelist()
        top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
        assert {"meshlib", "xds_server"} == top

    def test_wheel_has_every_adapter_and_no_link(self, built: tuple[Path, Path]) -> None:
        names = zipfile.ZipFile(built[0]).namelist()
        found = sorted(n.removeprefix("meshlib/integrations/") for n in names if n.startswith("meshlib/integrations/"))
        assert ADAPTERS == found
        assert len(names) == len(set(names))

    def test_wheel_has_data_files(self, built: tuple[Path, Path]) -> None:
        names = set(zipfile.ZipFile(built[0]).namelist())
        assert {
            "meshlib/py.typed",
            "xds_server/py.typed",
            "meshlib/protos/descriptors.bin",
            "meshlib/cli/demo/canary/checkout-canary.yaml",
        } <= names

    def test_sdist_has_the_adapters_once(self, built: tuple[Path, Path]) -> None:
        with tarfile.open(built[1]) as archive:
            names = [name.split("/", 1)[1] for name in archive.getnames() if "/" in name]
        assert ADAPTERS == sorted(
            n.removeprefix("integrations/") for n in names if n.startswith("integrations/") and n.endswith(".py")
        )
        assert not [name for name in names if name.startswith("meshlib/integrations/")]

    def test_wheel_works_without_any_framework(self, built: tuple[Path, Path], tmp_path: Path) -> None:
        venv.create(tmp_path / "env")
        python = tmp_path / "env" / "bin" / "python"
        # By our own pip, and without compiling what is never imported: half of the time otherwise.
        pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--no-compile", built[0]], check=True, timeout=300)
        program = (
            "import sys, meshlib, meshlib.mesh; meshlib.Mesh; meshlib.Bootstrap;"
            "bad = {'fastapi', 'starlette', 'django', 'uvicorn', 'opentelemetry.sdk', 'envoy', 'prometheus_client'} & set(sys.modules);"
            "assert not bad, bad;"
            "from importlib.util import find_spec; assert find_spec('xds_protos') is None and find_spec('envoy') is None"
        )
        subprocess.run([python, "-c", program], check=True, cwd=tmp_path, timeout=60)
        for command in (["meshctl", "--help"], ["xds-server", "--help"]):
            done = subprocess.run(
                [tmp_path / "env" / "bin" / command[0], *command[1:]],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                timeout=60,
            )
            # Without the `server` extra xds-server says what to install, in one line, and fails.
            if command[0] == "xds-server" and done.returncode != 0:
                assert "meshlib-xds[server]" in done.stderr
                assert 1 == len(done.stderr.strip().splitlines())
            else:
                assert 0 == done.returncode, done.stderr
