"""What pyproject.toml cannot say: the manual page is made of the commands when the package is built."""

import subprocess
import sys
from distutils.command.install_data import install_data  # setuptools brings it
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


class InstallData(install_data):
    """Puts the manual page beside the data files that pyproject.toml names."""

    def run(self) -> None:
        """Install the data files, and make the page."""
        super().run()
        page = Path(self.install_dir, "share/man/man1/intxtrace.1")
        self.mkpath(str(page.parent))
        subprocess.run([sys.executable, ROOT / "man" / "generate.py", page], check=True)
        self.outfiles.append(str(page))


setup(cmdclass={"install_data": InstallData})
