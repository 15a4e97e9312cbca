"""What only a second process, a built wheel or a look at the whole tree can show."""
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)


def python(code, **env):
    return subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, encoding='utf-8', env={**os.environ, 'PYTHONUTF8': '1', **env})


def test_import_is_light():
    r = python("import sys, ch5clf; print([m for m in ('torch', 'fastai', 'numpy', 'matplotlib') if m in sys.modules])")
    assert r.stdout.strip() == '[]', r.stderr


def test_drawing_needs_no_torch():
    r = python("import sys, ch5clf.sample; print([m for m in ('torch', 'fastai', 'pandas', 'matplotlib') if m in sys.modules])")
    assert r.stdout.strip() == '[]', r.stderr


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_fit_for_the_web(nb):
    "Outputs are there, small, without an error that was not meant and without this machine's paths."
    assert nb.stat().st_size < 2_000_000
    cells = [c for c in json.loads(nb.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    outputs = [o for c in cells for o in c['outputs']]
    assert not [o for o in outputs if o['output_type'] == 'error']
    if len(cells) > 5: assert outputs, 'no outputs are committed: python3 start.py notebooks ' + nb.stem
    text = json.dumps(outputs, ensure_ascii=False)
    found = re.search(r'(/root/|/home/\w|/work/|/tmp/|/Users/\w|[A-Z]:\\\\Users)[^"]{0,60}', text)
    assert not found, found.group(0)
    assert 'Warning' not in ''.join(json.dumps(o.get('text', '')) for o in outputs if o.get('name') == 'stderr')
    assert not any('nbdev' in ''.join(c['source']) and 'import nbdev' in ''.join(c['source']) for c in cells), 'learners have no nbdev'


def links():
    for nb in NOTEBOOKS:
        for c in json.loads(nb.read_text(encoding='utf-8'))['cells']:
            if c['cell_type'] == 'markdown':
                for target in re.findall(r'\]\(([^)\s]+)\)', ''.join(c['source'])):
                    if not re.match(r'[a-z]+:|#|attachment', target): yield nb, target


def test_links_between_notebooks_lead_somewhere():
    assert not [(nb.stem, t) for nb, t in links() if not (nb.parent/t.split('#')[0]).exists()]


@pytest.mark.slow
def test_wheel_from_sdist_carries_the_course(tmp_path):
    r = subprocess.run([sys.executable, '-m', 'build', '--no-isolation', '--outdir', str(tmp_path), str(ROOT)], capture_output=True, text=True)
    assert r.returncode == 0, r.stdout[-2000:] + r.stderr[-2000:]
    names = zipfile.ZipFile(next(tmp_path.glob('*.whl'))).namelist()
    for p in NOTEBOOKS: assert f'ch5clf/course/{p.relative_to(ROOT/"nbs").as_posix()}' in names
    assert 'ch5clf/course/images/paper_pets.jpg' in names
    assert any(n.startswith('ch5clf/runs/') for n in names)
    site = tmp_path/'site'
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target', str(site), str(next(tmp_path.glob('*.whl')))], check=True, capture_output=True)
    code = f"from ch5clf import cli; assert cli.__file__.startswith({str(site)!r}), cli.__file__; raise SystemExit(cli.main(['course', {str(tmp_path/'내 강의')!r}, '--copy-only']))"
    r = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(site), 'PYTHONUTF8': '1'})
    assert r.returncode == 0, r.stderr
    assert (tmp_path/'내 강의'/'index.ipynb').exists() and not (tmp_path/'내 강의'/'workshop'/'36_questions.ipynb').exists()


def test_start_refuses_an_old_python(tmp_path):
    code = f"import sys; sys.version_info = (3, 9, 1, 'final', 0); sys.argv = ['start.py', 'course']; import runpy; runpy.run_path({str(ROOT/'start.py')!r}, run_name='__main__')"
    r = python(code)
    assert r.returncode == 1 and 'Python 3.9 is too old; 3.11 or newer' in r.stderr and 'Traceback' not in r.stderr
