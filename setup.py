"""Builds ch5clf from settings.ini, and puts the course's notebooks into the wheel."""
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

root = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=["="])
parser.read(root / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
words = lambda key: cfg[key].split()
# PyPI shows the README without the repository around it: relative links become absolute.
raw, blob = (f"{cfg['git_url']}/{kind}/{cfg['branch']}/" for kind in ("raw", "blob"))
readme = (root / "README.md").read_text(encoding="utf-8")
readme = readme.replace("](nbs/images/", f"]({raw}nbs/images/").replace("](nbs/", f"]({blob}nbs/")
min_python = tuple(int(o) for o in cfg["min_python"].split("."))


class BuildWithCourse(build_py):
    "Copies nbs/ to ch5clf/course/, so that `ch5clf course` works from an installed wheel."

    def run(self):
        super().run()
        if self.editable_mode: return  # an editable install reads nbs/ where it stands
        dest = Path(self.build_lib) / "ch5clf" / "course"
        shutil.rmtree(dest, ignore_errors=True)
        shutil.copytree(root / "nbs", dest, ignore=shutil.ignore_patterns(".*", "_*", "*.qmd", "*.yml"))


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme,
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license_expression=cfg["license_expression"],
    license_files=["LICENSE"],
    url=cfg["git_url"],
    keywords=cfg["keywords"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Education",
        "Natural Language :: English",
        "Natural Language :: Korean",
    ] + [f"Programming Language :: Python :: 3.{minor}" for minor in range(min_python[1], 14)],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["ch5clf", "ch5clf.*"]),
    package_data={"ch5clf": ["runs/*.json", "words/*"]},
    install_requires=words("requirements"),
    extras_require={
        "course": words("course_requirements"),
        "onnx": words("onnx_requirements"),
        "dev": words("course_requirements") + words("dev_requirements"),
    },
    entry_points={
        "console_scripts": words("console_scripts"),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"],
    },
    cmdclass={"build_py": BuildWithCourse},
    zip_safe=False,
)
