"The commands for one's own photos: sample, check, train, predict. Other processes, as a user starts them."
import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ch5clf.cli import main

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, '-m', 'ch5clf.cli']
posix = pytest.mark.skipif(os.name != 'posix', reason='wants a POSIX shell')


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in dict(PYTHONPATH=str(ROOT), PYTHONUTF8='1', OMP_NUM_THREADS='1').items(): monkeypatch.setenv(name, value)


@pytest.fixture
def ch5clf(capsys, tmp_path, monkeypatch):
    "A command in this process, in a folder of its own: (code, output, complaints)."
    monkeypatch.chdir(tmp_path)
    def run(*args):
        capsys.readouterr()
        code = main([*map(str, args)])
        return code, *capsys.readouterr()
    return run


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A folder with 말티즈/, 고양이/ (one colour each, by and large) and a model of them."
    folder, rng = tmp_path_factory.mktemp('trained'), np.random.default_rng(0)
    for name, colour in (('말티즈', (200, 180, 160)), ('고양이', (40, 60, 90))):
        (folder/'사진'/name).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(np.array(colour) + rng.normal(0, 40, (48, 60, 3)), 0, 255).astype('uint8')
            Image.fromarray(pixels).save(folder/'사진'/name/f'{name} {i}.jpg')
    assert main(['train', str(folder/'사진'), '--quick', '--size', '32', '-o', str(folder/'애완.safetensors')]) == 0
    return folder


# ------------------------------------------------------------------ predict

def test_predict_names_photos(ch5clf, trained):
    dog, cat = trained/'사진'/'말티즈'/'말티즈 3.jpg', trained/'사진'/'고양이'/'고양이 3.jpg'
    code, out, err = ch5clf('predict', trained/'애완.safetensors', dog, cat)
    assert code == 0 and not err and [line.split()[2] for line in out.splitlines()[1:]] == ['말티즈', '고양이'], out


def test_predict_csv_and_json(ch5clf, trained):
    photos = trained/'사진'/'말티즈'
    code, out, _ = ch5clf('predict', trained/'애완.safetensors', photos, '--csv')
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0 and len(rows) == 12 and {r['likely'] for r in rows} == {'말티즈'} and all(0 <= float(r['probability']) <= 1 for r in rows)
    code, out, _ = ch5clf('predict', trained/'애완.safetensors', photos, '--json', '--top', 1)
    records = json.loads(out)
    assert code == 0 and len(records) == 12 and [len(r['top']) for r in records] == [1]*12
    assert [Path(r['file']).name for r in records] == [Path(r['file']).name for r in rows]


def test_not_sure(ch5clf, trained):
    code, out, _ = ch5clf('predict', trained/'애완.safetensors', trained/'사진'/'말티즈', '--threshold', 1, '--json')
    assert code == 0 and all(r['label'] is None and r['likely'] == '말티즈' for r in json.loads(out))


def test_unreadable_photos_are_named_and_the_others_predicted(ch5clf, trained, tmp_path):
    (tmp_path/'broken.jpg').write_bytes(b'\xff\xd8\xff\xe0nothing')
    (tmp_path/'empty.jpg').write_bytes(b'')
    photos = [tmp_path/'broken.jpg', trained/'사진'/'말티즈'/'말티즈 1.jpg', tmp_path/'empty.jpg', tmp_path/'none.jpg']
    code, out, err = ch5clf('predict', trained/'애완.safetensors', *photos)
    assert code == 1 and out.count('could not be read') == 3 and '말티즈' in out and err == 'ch5clf: 3 of 4 photos could not be read\n'
    code, out, _ = ch5clf('predict', trained/'애완.safetensors', *photos, '--csv')
    assert code == 1 and [bool(r['error']) for r in csv.DictReader(io.StringIO(out))] == [True, False, True, True]


def test_a_turned_photo_is_seen_upright(ch5clf, trained, tmp_path):
    "EXIF orientation 6, as phones write it: the same answer as the upright picture."
    im = Image.open(trained/'사진'/'말티즈'/'말티즈 2.jpg')
    exif = Image.Exif()
    exif[274] = 6
    im.transpose(Image.Transpose.ROTATE_90).save(tmp_path/'turned.png', exif=exif)
    im.save(tmp_path/'upright.png')
    _, out, _ = ch5clf('predict', trained/'애완.safetensors', tmp_path/'turned.png', tmp_path/'upright.png', '--json')
    a, b = json.loads(out)
    assert a['top'] == b['top']


def test_predicting_needs_no_fastai(trained):
    code = ("import sys; from ch5clf.cli import main; code = main(sys.argv[1:])\n"
            "print([m for m in ('fastai', 'pandas', 'matplotlib', 'tqdm.notebook') if m in sys.modules])\nraise SystemExit(code)")
    r = subprocess.run([sys.executable, '-c', code, 'predict', trained/'애완.safetensors', trained/'사진'/'말티즈'], capture_output=True, text=True)
    assert r.returncode == 0 and r.stdout.splitlines()[-1] == '[]', r.stdout + r.stderr


# ------------------------------------------------------------------ check

def test_check_says_what_to_mend(ch5clf, trained, tmp_path):
    shutil.copytree(trained/'사진', tmp_path/'photos')
    code, out, err = ch5clf('check', 'photos')
    assert code == 0 and out.endswith('Nothing is wrong.\n') and '2 classes from folders' in out and not err
    shutil.copy(tmp_path/'photos'/'말티즈'/'말티즈 1.jpg', tmp_path/'photos'/'고양이'/'고양이 99.jpg')
    (tmp_path/'photos'/'고양이'/'empty.jpg').write_bytes(b'')
    code, out, _ = ch5clf('check', 'photos')
    assert code == 1 and sum(line.startswith('!') for line in out.splitlines()) == 3 and '3 rows to mend' in out
    code, out, _ = ch5clf('check', 'photos', '--json')
    records = json.loads(out)
    assert code == 1 and sorted(r['problem'] for r in records if r['mend']) == ['empty', 'two labels', 'two labels']
    code, out, _ = ch5clf('check', 'photos', '--csv')
    assert code == 1 and len(list(csv.DictReader(io.StringIO(out)))) == len(records)


def test_what_is_only_worth_a_look(ch5clf, trained, tmp_path):
    "A tiny picture can be trained on: code 0."
    shutil.copytree(trained/'사진', tmp_path/'photos')
    Image.new('RGB', (20, 20), (9, 9, 9)).save(tmp_path/'photos'/'말티즈'/'tiny.png')
    code, out, _ = ch5clf('check', 'photos')
    assert code == 0 and 'tiny' in out and '0 rows to mend' in out


def test_one_class_has_to_be_mended(ch5clf, trained, tmp_path):
    shutil.copytree(trained/'사진'/'말티즈', tmp_path/'photos'/'말티즈')
    code, out, _ = ch5clf('check', 'photos')
    assert code == 1 and 'single class' in out and 'Nothing can be trained as it stands' in out
    code, _, err = ch5clf('train', 'photos')
    assert code == 2 and 'single class' in err and not [*tmp_path.glob('*.safetensors')]


# ------------------------------------------------------------------ sample, and mistakes

def test_sample(ch5clf, tmp_path):
    assert ch5clf('sample', 'pets', '--per-breed', 5)[0] == 0
    assert len([*(tmp_path/'pets'/'images').iterdir()]) == 60
    assert ch5clf('sample', 'pets', '--per-breed', 5)[0] == 0, 'the same set is found again'
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'letter.txt').write_text('mine')
    code, _, err = ch5clf('sample', 'mine')
    assert code == 2 and err.count('\n') == 1 and [f.name for f in (tmp_path/'mine').iterdir()] == ['letter.txt']


@pytest.mark.parametrize('args', [
    ('train', 'nowhere'), ('train', ''), ('check', 'nowhere'), ('check', 'a file'), ('sample', 'a file'), ('sample', ''), ('sample', 'x', '--per-breed', '1'),
    ('train', 'a file'), ('train', '.', '--out', 'x.pkl'), ('train', '.', '--out', 'nowhere/x.safetensors'), ('train', '.', '--epochs', '-1'),
    ('train', '.', '--bs', '1'), ('train', '.', '--size', '9'), ('train', '.', '--sure', '2'), ('train', '.', '--device', 'abacus'),
    ('train', '.', '--quick', '--epochs', '2'), ('train', '.'), ('predict', 'nowhere.safetensors', 'x.jpg'), ('predict', 'a file', 'x.jpg'),
    ('predict', '{model}', 'empty'), ('predict', '{model}', 'x.jpg', '--threshold', '2'), ('predict', '{model}', 'x.jpg', '--top', '0'),
    ('predict', '{model}', 'x.jpg', '--device', 'abacus')], ids=lambda a: ' '.join(a))
def test_a_mistake_is_one_line(ch5clf, trained, tmp_path, args):
    (tmp_path/'a file').write_text('x')
    (tmp_path/'empty').mkdir()
    code, out, err = ch5clf(*[a.format(model=trained/'애완.safetensors') for a in args])
    assert code == 2 and err.startswith('ch5clf: ') and err.count('\n') == 1 and 'Errno' not in err and not out, (out, err)
    assert {f.name for f in tmp_path.iterdir()} == {'a file', 'empty'}, 'nothing is left behind'


@posix
@pytest.mark.parametrize('line, codes', [
    ('predict {model} {photos} | head -1; exit ${{PIPESTATUS[0]}}', {0}), ('predict {model} {photos} > /dev/full', {1}),
    ('predict {model} {photos} >&- 2>&-', {0}), ('check {photos} > /dev/full', {1}), ('check {photos} | true', {0}),
    ('predict nowhere.safetensors x.jpg 2> /dev/full', {2}), ('train {photos} --quick --size 32 2>&1 >&- | true; exit ${{PIPESTATUS[0]}}', {0})])
@pytest.mark.slow
def test_output_that_nobody_takes(trained, tmp_path, line, codes):
    if '/dev/full' in line and not os.path.exists('/dev/full'): pytest.skip('no /dev/full')
    line = line.format(model=f"'{trained/'애완.safetensors'}'", photos=f"'{trained/'사진'}'")
    command = ' '.join(f"'{part}'" for part in COMMAND)
    r = subprocess.run(['bash', '-c', f'{command} {line}'], capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=tmp_path)
    assert r.returncode in codes and 'Traceback' not in r.stderr and 'Exception ignored' not in r.stderr, r.stderr
    if codes == {1}: assert r.stderr == 'ch5clf: the output: No space left on device\n'
    if line.startswith('train'): assert (tmp_path/'사진.safetensors').exists(), 'a training goes on where nobody listens'
