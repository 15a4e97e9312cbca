"""Chapter 06 on photographs: a reader's folder of two breeds, run as a learner runs it."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ch5clf.edition import copy_course
from ch5clf.saved import load_model, predict

ROOT = Path(__file__).resolve().parents[1]
PETS = ROOT.parent/'shared'/'photos'/'pets_dev'/'images'


def run(folder, mine, name='06_yours.ipynb'):
    "The learner's copy with `MY_PHOTOS` set, executed in a kernel of its own; its code cells."
    import nbformat
    from nbclient import NotebookClient
    copy_course(folder/'course')
    book = nbformat.read(folder/'course'/name, as_version=4)
    cell, = [c for c in book.cells if c.cell_type == 'code' and c.source.startswith('MY_PHOTOS = None')]
    cell.source = f'MY_PHOTOS = {str(mine)!r}'
    NotebookClient(book, timeout=600, resources=dict(metadata=dict(path=str(folder/'course')))).execute()
    return [c for c in book.cells if c.cell_type == 'code']


def text_of(cell): return ''.join(str(o.get('text') or o.get('data', {}).get('text/markdown') or o.get('data', {}).get('text/plain', '')) for o in cell.outputs)


def after(cells, word): return next(text_of(c) for c in cells if word in c.source)


@pytest.mark.slow
def test_a_readers_own_photos(tmp_path, monkeypatch):
    "Two breeds of twenty photographs, named as a telephone names them, with a burst and a Korean folder."
    if not PETS.exists(): pytest.skip('the photographs in ../shared are not here')
    monkeypatch.setenv('CH5CLF_PROGRESS', str(tmp_path/'progress'))
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    mine = tmp_path/'내 사진'
    for breed, name in (('Bengal', '벵골: 우리 집'), ('samoyed', 'samoyed')):
        (mine/name).mkdir(parents=True)
        for i, f in enumerate(sorted(PETS.glob(f'{breed}_*.jpg'))[:20]): shutil.copy(f, mine/name/f'IMG_{i + 300:04}.jpg')
    (mine/'samoyed'/'.DS_Store').write_bytes(b'\0')
    cells = run(tmp_path, mine)
    told = re.search(r'(\d+) of (\d+) wrong', after(cells, 'told = measure'))
    assert int(told[1]) <= 3 and 12 <= int(told[2]) <= 14
    card = (tmp_path/'mine.md').read_text(encoding='utf-8')
    assert '벵골: 우리 집' in card and f'{told[1]} of {told[2]} held-back' in card and '95 %' in card
    model = load_model(tmp_path/'mine.safetensors')
    assert model.about.threshold == .7 and len(predict(model, mine)) == 40
    assert 'fastai is there: False' in after(cells, 'run = subprocess.run')


def test_it_needs_nothing_but_what_the_course_installs():
    "Each import of the chapter is of the standard library, or named in settings.ini."
    cells = [c for c in json.loads((ROOT/'nbs'/'06_yours.ipynb').read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']
    names = {m for c in cells for line in c['source'] for m in re.findall(r'^(?:import|from) (\w+)', line) + re.findall(r'^import .*, (\w+)', line)}
    settings = (ROOT/'settings.ini').read_text(encoding='utf-8').replace('scikit-image', 'skimage').replace('scikit-learn', 'sklearn').replace('pillow', 'PIL')
    unknown = {n for n in names - sys.stdlib_module_names - {'ch5clf', 'IPython'} if n not in settings}
    assert not unknown and {'pandas', 'skimage'} <= names


def test_the_example_album_has_what_the_text_says():
    "One near-duplicate, one cut file and a note, drawn the same at every run."
    book = json.loads((ROOT/'nbs'/'06_yours.ipynb').read_text(encoding='utf-8'))
    source, = [''.join(c['source']) for c in book['cells'] if c['cell_type'] == 'code' and 'def drawn_album' in ''.join(c['source'])]
    code = f'''
import hashlib, tempfile
from pathlib import Path
from PIL import Image
from ch5clf.sample import draw
MY_PHOTOS = None
{source}
assert folder.name == 'album'
print(len(list(folder.rglob('*.*'))), hashlib.sha256(b''.join(f.read_bytes() for f in sorted(folder.rglob('*.jpg')))).hexdigest())
'''
    said = [subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONUTF8': '1'}) for _ in range(2)]
    assert said[0].stdout == said[1].stdout and said[0].stdout.startswith('63 '), said[0].stderr
