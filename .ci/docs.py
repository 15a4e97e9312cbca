"""Can the docs site be built? `python .ci/docs.py` prepares every page in a temporary copy, as nbdev_docs does.

nbdev processes each notebook (it executes what a notebook exports and imports), then nbconvert draws it. Quarto, which
would draw the site itself, is not needed: where there is none, nbdev sees a program of that name that does nothing.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import yaml
from nbconvert import HTMLExporter

ROOT = Path(__file__).resolve().parents[1]
ORDER = {'asides': 1, 'workshop': 2}  # the lessons come before them
FILES = ('.ipynb', '.yml', '.css', '.scss', '.js', '.jpg', '.png', '.svg', '.html')


def notebooks(folder):
    found = (p.relative_to(folder) for p in folder.rglob('*.ipynb'))
    return sorted(p.as_posix() for p in found if not any(part.startswith(('.', '_')) for part in p.parts))


def environment(tmp):
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}  # in a test, nbdev's commands do nothing
    env.update(PYTHONPATH=str(tmp / 'copy'), PYTHONUTF8='1')
    if not shutil.which('quarto'):
        stub = tmp / 'stub' / ('quarto.bat' if os.name == 'nt' else 'quarto')
        stub.parent.mkdir()
        stub.write_text('@exit /b 0\n' if os.name == 'nt' else '#!/bin/sh\nexit 0\n')
        stub.chmod(0o755)
        env['PATH'] = str(stub.parent) + os.pathsep + env.get('PATH', '')
    return env


def process(tmp):
    "The folder of processed notebooks, or None where nbdev failed (it has said why)."
    copy = tmp / 'copy'
    for part in ('nbs', 'ch5clf'):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns('__pycache__', '.*'))
    for part in ('settings.ini', 'pyproject.toml', 'setup.py', 'README.md'):
        shutil.copy(ROOT / part, copy / part)
    name = 'nbdev_proc_nbs' + ('.exe' if os.name == 'nt' else '')
    command = [str(Path(sys.executable).with_name(name)), '--n_workers', '0', '--file_re', r'\.ipynb$']
    return None if subprocess.run(command, cwd=copy, env=environment(tmp)).returncode else copy / '_proc'


def drawing_faults(site):
    for name in notebooks(ROOT / 'nbs'):
        if not (site / name).exists():
            yield '%s: nbdev did not process it' % name
            continue
        try:
            book = nbformat.read(site / name, 4)
            html, _ = HTMLExporter().from_notebook_node(book)
            if len(html) < 10_000:
                yield '%s: nbconvert drew next to nothing' % name
        except Exception as e:
            yield '%s: nbconvert cannot draw it: %s: %s' % (name, type(e).__name__, e)


def names_in(o):
    "All file names that a part of Quarto's settings holds."
    if isinstance(o, dict):
        o = list(o.values())
    if isinstance(o, list):
        return [name for x in o for name in names_in(x)]
    return [o] if isinstance(o, str) and Path(o).suffix in FILES else []


def settings_faults(site):
    files = [site / name for name in ('_quarto.yml', 'nbdev.yml', 'sidebar.yml')]
    parts = [yaml.safe_load(file.read_text(encoding='utf-8')) for file in files]
    for name in names_in(parts):
        if not (site / name).exists():
            yield 'the settings of the site name %s, which is not there' % name
    sidebar = names_in(parts[2])
    wanted = sorted(notebooks(ROOT / 'nbs'), key=lambda n: (ORDER.get(n.split('/')[0], 0), n != 'index.ipynb', n))
    if sidebar != wanted:
        yield 'the sidebar is not lessons, asides, workshop: %s' % ', '.join(sidebar)


def main():
    with tempfile.TemporaryDirectory() as tmp:
        site = process(Path(tmp))
        faults = ['nbdev_proc_nbs failed'] if site is None else [*drawing_faults(site), *settings_faults(site)]
        for fault in faults:
            print('docs: ' + fault)
    return bool(faults)


if __name__ == '__main__':
    sys.exit(main())
