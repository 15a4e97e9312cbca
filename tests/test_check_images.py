"""Two hundred broken files, and what `check_images` says of each: a named row, and nothing else."""
import faulthandler
import io
import logging
import os
import random
import struct
import subprocess
import sys
import threading
import tracemalloc
import unicodedata
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ch5clf import photos, pictures
from ch5clf.data import check_images
from ch5clf.photos import problem_of, usable_images
from ch5clf.presize import presize_store
from PIL import Image

COLUMNS = ['file', 'problem', 'detail', 'remedy', 'usable']
HARMLESS = {'wrong suffix', 'odd colours', 'transparent', 'animated', 'rotated', 'tiny', 'blank', 'two labels', 'leak', 'duplicate'}
BROKEN = {'truncated', 'unreadable', 'not an image', 'huge', 'odd colours'}


@pytest.fixture(autouse=True)
def no_hang():
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def picture(rng, size=(90, 70)):
    "Smooth enough to compress like a photo, and no two the same."
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.BICUBIC)


def encoded(im, kind, **kwargs):
    b = io.BytesIO()
    im.save(b, kind, **kwargs)
    return b.getvalue()


def chunk(name, body): return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))


def png_header(w, h, depth=8, colour=2):
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'\0'*100)) + chunk(b'IEND', b'')


def resized_header(jpeg, w, h):
    "The same JPEG, whose header claims another size."
    at = next(i for i in range(len(jpeg)) if jpeg[i:i+2] in (b'\xff\xc0', b'\xff\xc2'))
    return jpeg[:at+5] + struct.pack('>HH', h, w) + jpeg[at+9:]


FORMATS = {'JPEG': 'jpg', 'PNG': 'png', 'GIF': 'gif', 'WEBP': 'webp', 'TIFF': 'tif', 'BMP': 'bmp'}


def broken_files(rng):
    "name -> (bytes, problems that may be told, may it be clean?)"
    out, python = {}, random.Random(7)
    for i in range(72):  # bit flips: one, or a dozen
        kind = list(FORMATS)[i % 6]
        b = bytearray(encoded(picture(rng), kind))
        for _ in range((1, 12)[i//6 % 2]): b[python.randrange(len(b))] ^= 1 << python.randrange(8)
        out[f'Flip_cat_{i}.{FORMATS[kind]}'] = bytes(b), BROKEN | HARMLESS, True
    for i in range(48):  # truncations
        kind = list(FORMATS)[i % 6]
        b = encoded(picture(rng), kind)
        out[f'Cut_cat_{i}.{FORMATS[kind]}'] = b[:max(40, int(len(b)*python.uniform(.02, .9)))], {'truncated'} | ({'unreadable'} if kind in ('TIFF', 'BMP') else set()), False
    for i, junk in enumerate(junk_files(rng)): out[f'Junk_dog_{i}.{("jpg", "png", "webp", "heic")[i % 4]}'] = junk, {'not an image', 'unreadable', 'HEIC', 'truncated'}, False
    for i in range(6): out[f'Empty_dog_{i}.{list(FORMATS.values())[i]}'] = b'', {'empty'}, False
    for i, (w, h) in enumerate([(60_000, 60_000), (100_000, 100_000), (2**31-1, 2**31-1), (12_000, 9_000), (40_000, 2_300), (90_000_000, 1)]): out[f'Huge_cat_{i}.png'] = png_header(w, h), {'huge'}, False
    for i, (w, h) in enumerate([(65_000, 65_000), (65_000, 1_400), (12_000, 9_000), (0, 50)]): out[f'Huge_dog_{i}.jpg'] = resized_header(encoded(picture(rng), 'JPEG'), w, h), {'huge'} if w else {'unreadable', 'truncated'}, False
    for i, (make, problem) in enumerate(odd_pictures(rng)): out[f'Odd_cat_{i}.{make[1]}'] = make[0], {problem}, False
    return out


def junk_files(rng):
    z = io.BytesIO()
    with zipfile.ZipFile(z, 'w') as f: f.writestr('cat.txt', 'no cat')
    heads = [z.getvalue(), b'<!DOCTYPE html><html><body>404 not found</body></html>', '고양이 사진입니다'.encode(), b'just text', b'%PDF-1.7\n', b'\0'*5000, rng.bytes(3000),
             b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', b'\0\0\0\x18ftypmp42' + b'\0'*400, b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + b'\0'*900, b'GIF89a', b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff',
             b'RIFF\xff\xff\0\0WEBPVP8 ', b'II*\0' + b'\xff'*30, b'BM' + b'\0'*60, b'8BPS' + b'\0'*90, b'\xff\x0a' + rng.bytes(90), b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', b'{"error": 403}',
             b'RIFF\x24\0\0\0WAVEfmt ', b'\x1f\x8b' + rng.bytes(40), b'P6 9 9 255\n', b'\0\0\1\0\1\0' + rng.bytes(20), b'\xef\xbb\xbf<html>', b'\x1aE\xdf\xa3' + rng.bytes(50)]
    return heads + [bytes([k]) for k in (0, 255)] + [rng.bytes(int(n)) for n in rng.integers(1, 400, 6)]


def odd_pictures(rng):
    "((bytes, suffix), the problem that must be told)"
    deep = rng.integers(0, 65536, (60, 80)).astype(np.uint16)
    frames = [picture(rng) for _ in range(3)]
    exif = [Image.Exif() for _ in range(7)]
    for o, e in zip(range(2, 9), exif): e[0x0112] = o
    glass, hole = picture(rng).convert('RGBA'), picture(rng).convert('P')
    glass.putalpha(90)
    yield (encoded(picture(rng).convert('CMYK'), 'JPEG'), 'jpg'), 'odd colours'
    yield (encoded(picture(rng).convert('CMYK'), 'TIFF'), 'tif'), 'odd colours'
    yield (encoded(picture(rng).convert('LAB'), 'TIFF'), 'tif'), 'odd colours'
    yield (encoded(Image.fromarray(deep), 'PNG'), 'png'), 'odd colours'
    yield (encoded(Image.fromarray(deep), 'TIFF'), 'tif'), 'odd colours'
    yield (encoded(Image.fromarray(deep.astype(np.int32)), 'TIFF'), 'tif'), 'odd colours'
    yield (encoded(Image.fromarray(deep.astype(np.float32)), 'TIFF'), 'tif'), 'odd colours'
    yield (deep_colour(rng), 'png'), 'odd colours'
    yield (encoded(glass, 'PNG'), 'png'), 'transparent'
    yield (encoded(glass, 'WEBP'), 'webp'), 'transparent'
    yield (encoded(hole, 'PNG', transparency=int(hole.getpixel((9, 9)))), 'png'), 'transparent'
    yield (encoded(hole, 'GIF', transparency=int(hole.getpixel((9, 9)))), 'gif'), 'transparent'
    for kind, suffix in (('GIF', 'gif'), ('PNG', 'png'), ('WEBP', 'webp'), ('TIFF', 'tif')): yield (encoded(picture(rng), kind, save_all=True, append_images=frames), suffix), 'animated'
    for e in exif: yield (encoded(picture(rng), 'JPEG', exif=e), 'jpg'), 'rotated'
    for kind, suffix in (('PNG', 'png'), ('WEBP', 'webp')): yield (encoded(picture(rng), kind, exif=exif[4]), suffix), 'rotated'
    for size in ((1, 1), (16, 200), (31, 31)): yield (encoded(picture(rng, size), 'PNG'), 'png'), 'tiny'
    for kind, suffix in (('PNG', 'jpg'), ('JPEG', 'png'), ('WEBP', 'jpg'), ('GIF', 'jpeg'), ('BMP', 'jpg')): yield (encoded(picture(rng), kind), suffix), 'wrong suffix'
    yield (encoded(Image.new('RGB', (50, 60), 'white'), 'JPEG'), 'jpg'), 'blank'


def deep_colour(rng):
    "A PNG with 16 bits a colour, which Pillow reads and does not write."
    rows = b''.join(b'\0' + rng.bytes(40*6) for _ in range(40))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 40, 40, 16, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


@pytest.fixture(scope='module')
def two_hundred(tmp_path_factory):
    folder, files = tmp_path_factory.mktemp('사진 set'), broken_files(np.random.default_rng(42))
    for name, (b, _, _) in files.items(): (folder/name).write_bytes(b)
    return folder, files


def decodes(file):
    try:
        with warnings.catch_warnings(), Image.open(file) as im:
            warnings.simplefilter('ignore')
            im.convert('RGB').tobytes()
        return True
    except Exception: return False


def test_each_broken_file_ends_in_a_named_row_and_nothing_else(two_hundred, capfd):
    folder, files = two_hundred
    assert len(files) >= 200, len(files)
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        table = check_images(folder)
    said = capfd.readouterr()
    assert not told and said.err == '' and said.out == '' and warnings.filters == filters
    assert list(table) == COLUMNS and table.usable.dtype == bool and set(table.file) <= set(files)
    assert not table.duplicated(['file', 'problem']).any()
    for name, (_, may, may_be_clean) in files.items():
        rows = table[table.file == name]
        assert may_be_clean or len(rows), f'{name}: nothing was said'
        assert not len(rows) or set(rows.problem) & may, f'{name}: {rows.problem.tolist()}, not {may}'
        assert len(rows[~rows.usable]) or decodes(folder/name), f'{name} is called usable, and cannot be decoded'
        assert rows.usable.nunique() <= 1 and (~rows.problem.isin(HARMLESS)).sum() <= 1, rows
    assert table.remedy.str.len().gt(3).all() and not table.detail.str.contains(str(folder), regex=False).any()


def test_it_says_the_same_again(two_hundred):
    a, b = check_images(two_hundred[0]), check_images(str(two_hundred[0]))
    assert a.equals(b) and list(a.file) == sorted(a.file)


def test_what_may_be_used_decodes_and_the_rest_is_named_once(two_hundred, capsys):
    folder, files = two_hundred
    photos._told.clear()
    usable = usable_images(folder, decode=True)
    said = capsys.readouterr().out
    table = check_images(folder)
    assert {f.name for f in usable} == set(files) - set(table.file[~table.usable])
    assert f'{len(files) - len(usable)} of {len(files)} pictures are left out' in said and 'check_images' in said
    usable_images(folder, decode=True)
    assert capsys.readouterr().out == ''
    for f in usable: assert decodes(f) and problem_of(f) is None
    quick = usable_images(folder)
    assert set(usable) <= set(quick) and list(quick) == sorted(quick, key=str)
    missed = [f for f in quick if f not in set(usable)]
    assert all(f.name.startswith('Flip') for f in missed), missed  # truncations and impostors are seen without decoding


def test_problem_of_names_file_trouble_and_remedy(two_hundred):
    folder, files = two_hundred
    assert problem_of(folder/'Empty_dog_0.jpg') == 'Empty_dog_0.jpg: empty, the file has 0 bytes; copy it again from where it came, or delete it'
    assert 'Huge_cat_0.png: huge' in problem_of(folder/'Huge_cat_0.png')
    assert 'gone.jpg' in problem_of(folder/'gone.jpg')


def test_the_store_of_the_loader_agrees(two_hundred, tmp_path, monkeypatch):
    "What the check calls usable is what `presize_store` can keep, and the other way round."
    monkeypatch.setenv('CH5CLF_CACHE', str(tmp_path))
    folder, files = two_hundred
    quick, table = usable_images(folder), check_images(folder, labels=False)
    problems = presize_store(quick, 40).problems
    assert {Path(f).name for f in problems} == {f.name for f in quick} & set(table.file[~table.usable])
    assert all(problem_of(f) for f in problems)


def test_a_clean_folder_has_nothing_to_say(tmp_path):
    rng = np.random.default_rng(0)
    for i, (kind, suffix) in enumerate([('JPEG', 'JPG'), ('JPEG', 'jpeg'), ('JPEG', 'jfif'), ('PNG', 'png'), ('GIF', 'gif'), ('WEBP', 'webp'), ('BMP', 'bmp'), ('TIFF', 'tiff')]):
        picture(rng).save(tmp_path/f'Good_cat_{i}.{suffix}', kind)
    for i, mode in enumerate(('L', '1', 'P', 'RGBA', 'LA')): picture(rng).convert(mode).save(tmp_path/f'good_dog_{i}.png')
    (tmp_path/'labels.csv').write_text('name,label\n', encoding='utf-8')
    (tmp_path/'notes.txt').write_text('BMW is no bitmap', encoding='utf-8')
    (tmp_path/'data.bin').write_bytes(b'\0\0\1\0' + bytes(90))
    (tmp_path/'._Good_cat_1.jpg').write_bytes(b'what macOS leaves on other disks')
    table = check_images(tmp_path)
    assert len(table) == 0 and list(table) == COLUMNS and table.usable.dtype == bool
    assert len(usable_images(tmp_path)) == 13
    assert len(check_images(tmp_path).query('usable')) == 0
    (tmp_path/'nothing').mkdir()
    assert list(check_images(tmp_path/'nothing')) == COLUMNS
    for f in (check_images, usable_images):
        with pytest.raises(FileNotFoundError, match='there is no such folder'): f(tmp_path/'gone')


def test_what_is_no_file(tmp_path):
    rng = np.random.default_rng(1)
    nfd = unicodedata.normalize('NFD', '달무늬_3.jpg')
    (tmp_path/'set'/'x.jpg').mkdir(parents=True)
    picture(rng).save(tmp_path/'set'/nfd)
    picture(rng).save(tmp_path/'set'/'x.jpg'/'Inside_cat_1.jpg')
    if os.name == 'nt': pytest.skip('links and pipes are for the others')
    for link, to in (('round', '.'), ('up', '..'), ('lost_cat_1.jpg', 'nowhere'), ('self_cat_2.jpg', 'self_cat_2.jpg'), ('alias', 'x.jpg')): (tmp_path/'set'/link).symlink_to(to)
    os.mkfifo(tmp_path/'set'/'pipe_cat_3.jpg')
    os.makedirs(tmp_path/'other'/'deep')
    picture(rng).save(tmp_path/'other'/'deep'/'Far_cat_1.jpg')
    (tmp_path/'other'/'back').symlink_to('../set')
    (tmp_path/'set'/'elsewhere').symlink_to('../other')
    table = check_images(tmp_path/'set', labels=False)
    assert dict(zip(table.file, table.problem)) == {k: 'no file' for k in ('round', 'up', 'lost_cat_1.jpg', 'self_cat_2.jpg', 'alias', 'pipe_cat_3.jpg', 'x.jpg', 'elsewhere/back')}
    details = dict(zip(table.file, table.detail))
    assert 'nowhere' in details['lost_cat_1.jpg'] and 'circle' in details['self_cat_2.jpg'] and 'folder' in details['x.jpg'] and 'pipe' in details['pipe_cat_3.jpg']
    photos._told.clear()
    assert sorted(f.name for f in usable_images(tmp_path/'set')) == sorted(['Far_cat_1.jpg', 'Inside_cat_1.jpg', nfd])


@pytest.mark.skipif(sys.platform in ('win32', 'darwin'), reason='these systems refuse such names')
def test_names_that_are_no_text(tmp_path):
    picture(np.random.default_rng(2)).save(tmp_path/'a.jpg')
    os.rename(tmp_path/'a.jpg', os.fsencode(tmp_path) + b'/caf\xe9_1.jpg')
    table = check_images(tmp_path)
    assert table.problem.tolist() == ['bad name'] and table.file.tolist() == ['caf\\xe9_1.jpg']
    print(table, usable_images(tmp_path))
    assert len(usable_images(tmp_path)) == 0


def test_not_permitted(tmp_path, monkeypatch):
    picture(np.random.default_rng(3)).save(tmp_path/'Shy_cat_1.jpg')
    def refuse(*args): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(pictures, 'open', refuse, raising=False)  # root may read everything
    assert check_images(tmp_path).problem.tolist() == ['not permitted']
    monkeypatch.undo()
    if os.name == 'nt' or not os.geteuid(): return
    (tmp_path/'shut').mkdir(); (tmp_path/'shut').chmod(0)
    assert check_images(tmp_path)[['file', 'problem']].values.tolist() == [['shut', 'not permitted']]


def test_pictures_that_nobody_finds_and_films(tmp_path):
    rng = np.random.default_rng(4)
    for name in ('Cat_1', 'Cat_2.txt', 'Cat_3.jpg.download'): (tmp_path/name).write_bytes(encoded(picture(rng), 'JPEG'))
    (tmp_path/'Cat_4.mov').write_bytes(b'\0\0\0\x14ftypqt  ' + bytes(90))
    (tmp_path/'Cat_5.dng').write_bytes(encoded(picture(rng), 'TIFF'))
    table = check_images(tmp_path)
    assert table.problem.tolist() == ['wrong suffix']*3 + ['not an image']*2 and not table.usable.any()
    assert table.detail[4].startswith('a raw photo') and 'live photo' in table.remedy[3]


def test_twins(tmp_path):
    rng = np.random.default_rng(5)
    a, b, c, d, e = (picture(rng) for _ in range(5))
    for f in ('Cat', 'dog'): (tmp_path/f).mkdir()
    a.save(tmp_path/'Cat'/'1.png'); a.save(tmp_path/'Cat'/'2.png')
    b.save(tmp_path/'Cat'/'3.png'); b.save(tmp_path/'dog'/'4.bmp')
    c.save(tmp_path/'dog'/'5.png')
    turned = Image.Exif(); turned[0x0112] = 6
    d.save(tmp_path/'dog'/'6.png'); d.transpose(Image.Transpose.ROTATE_90).save(tmp_path/'dog'/'7.png', exif=turned)
    table = check_images(tmp_path)
    assert table[['file', 'problem']].values.tolist() == [['Cat/1.png', 'duplicate'], ['Cat/2.png', 'duplicate'], ['Cat/3.png', 'two labels'], ['dog/4.bmp', 'two labels'],
                                                          ['dog/6.png', 'duplicate'], ['dog/7.png', 'rotated'], ['dog/7.png', 'duplicate']]
    assert table.usable.all() and 'the same bytes as Cat/2.png' in table.detail[0] and 'the same pixels as dog/4.bmp, which is labelled dog; this one Cat' in table.detail[2]


@pytest.mark.parametrize('how', ['table', 'folders'])
def test_leaks(tmp_path, how):
    rng = np.random.default_rng(6)
    a, b = picture(rng), picture(rng)
    places = [Path(), Path()] if how == 'table' else [Path('train'), Path('valid')]
    for p in places: (tmp_path/p).mkdir(exist_ok=True)
    for im, names in ((a, ('Cat_1.png', 'Cat_2.png')), (b, ('Cat_3.png', 'dog_4.png'))):
        for p, n in zip(places, names): im.save(tmp_path/p/n)
    if how == 'table': (tmp_path/'labels.csv').write_text('name,split\nCat_1.png,train\nCat_2.png,valid\nCat_3.png,train\ndog_4.png,valid\n', encoding='utf-8')
    table = check_images(tmp_path)
    assert Counter(table.problem) == {'leak': 4, 'two labels': 2}
    assert table.detail.str.contains('which stands on the side of valid; this one on that of train').sum() == 2


def test_labels(tmp_path):
    rng = np.random.default_rng(8)
    for n in ('KakaoTalk_20261124.jpg', 'IMG_2041.jpg', 'Moon_point_1.jpg', '고양이.jpg'): picture(rng).save(tmp_path/n)
    table = check_images(tmp_path)
    assert table.file.tolist() == ['IMG_2041.jpg', 'KakaoTalk_20261124.jpg', '고양이.jpg'] and set(table.problem) == {'no label'} and not table.usable.any()
    assert len(check_images(tmp_path, labels=False)) == 0
    for n in ('Moon_point_2.png', 'pug_3.png', 'IMG_4.png'): Image.open(tmp_path/'Moon_point_1.jpg').save(tmp_path/n)
    twins = check_images(tmp_path).query('problem in ("two labels", "duplicate")')
    assert dict(zip(twins.file, twins.problem)) == {'IMG_4.png': 'duplicate', 'Moon_point_1.jpg': 'two labels', 'Moon_point_2.png': 'two labels', 'pug_3.png': 'two labels'}
    assert twins.detail.str.contains('pug').sum() == 3
    for n in ('Moon_point_2.png', 'pug_3.png', 'IMG_4.png'): (tmp_path/n).unlink()
    for f in ('Cat', 'dog'):
        (tmp_path/f).mkdir()
        picture(rng).save(tmp_path/f/'IMG_1.jpg')
    assert check_images(tmp_path).file.tolist() == ['IMG_2041.jpg', 'KakaoTalk_20261124.jpg', 'Moon_point_1.jpg', '고양이.jpg']


def test_heic(tmp_path, monkeypatch):
    file = tmp_path/'Phone_cat_1.heic'
    file.write_bytes(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + struct.pack('>I4s', 40, b'mdat') + bytes(32))
    reads = pictures.reads
    monkeypatch.setattr(pictures, 'reads', lambda kind: kind != 'HEIF' and reads(kind))
    assert 'pip install pillow-heif' in problem_of(file)
    monkeypatch.undo()
    pillow_heif = pytest.importorskip('pillow_heif')
    assert problem_of(file).startswith('Phone_cat_1.heic: unreadable')
    pillow_heif.register_heif_opener()
    picture(np.random.default_rng(9)).save(file)
    assert problem_of(file) is None and len(check_images(tmp_path)) == 0 and len(usable_images(tmp_path)) == 1


def test_memory_does_not_grow_and_a_bomb_stays_shut(tmp_path):
    for i in range(40): Image.effect_noise((400, 400), 90).convert('RGB').save(tmp_path/f'Noise_{("cat", "dog")[i % 2]}_{i}.png', compress_level=0)
    (tmp_path/'Bomb_cat_0.png').write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 9400, 9600, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(10**7))) + chunk(b'IEND', b''))
    tracemalloc.start()
    table = check_images(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.problem.tolist() == ['huge'] and peak < 25e6, peak


def test_two_checks_at_once_leave_the_filters_alone(two_hundred):
    tables, filters = [], list(warnings.filters)
    threads = [threading.Thread(target=lambda: tables.append(check_images(two_hundred[0]))) for _ in range(2)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert tables[0].equals(tables[1]) and warnings.filters == filters


def test_pillows_log_is_silent_while_we_look(caplog):
    with pictures.quietly(): logging.getLogger('PIL.TiffImagePlugin').error('more samples than can be decoded')
    assert not caplog.records and logging.getLogger('PIL').level < logging.CRITICAL


def test_no_words_in_a_plain_process(two_hundred):
    code = f'import warnings; warnings.simplefilter("ignore")\nfrom ch5clf.data import check_images\nwarnings.simplefilter("default")\nimport sys; print("MARK", file=sys.stderr)\nprint(len(check_images({str(two_hundred[0])!r})))'
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, encoding='utf-8', env={**os.environ, 'PYTHONUTF8': '1'})
    assert r.returncode == 0 and int(r.stdout) >= 100 and r.stderr.split('MARK\n')[1] == '', r.stderr[-2000:]


def test_two_troubles_of_one_file_are_both_told(tmp_path):
    b = encoded(picture(np.random.default_rng(10)), 'PNG')
    (tmp_path/'Cat_1.jpg').write_bytes(b[:len(b)//2])
    table = check_images(tmp_path)
    assert table.problem.tolist() == ['truncated', 'wrong suffix'] and not table.usable.any()
