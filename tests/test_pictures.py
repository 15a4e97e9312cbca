"""The one reader of picture files, under everything that a folder of strangers holds."""
import errno
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from ch5clf import photos, pictures
from ch5clf.photos import problem_of, usable_images
from ch5clf.pictures import FORMATS, MAX_PIXELS, SUFFIXES, BadPicture, files_below, kind_of, on_screen, open_picture, presized, printable, reads
from ch5clf.presize import presize_store
from ch5clf.sample import contact_sheet


def photo(seed=0, size=(90, 70)):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)


def encoded(im, kind, **kwargs):
    out = io.BytesIO()
    im.save(out, kind, **kwargs)
    return out.getvalue()


def refused(file, problem):
    with pytest.raises(BadPicture) as e: open_picture(file)
    assert e.value.problem == problem, e.value
    return e.value


def all_readers(folder, cache, monkeypatch):
    "What each reader says of the files of a folder: names that it can open."
    monkeypatch.setenv('CH5CLF_CACHE', str(cache))
    files = sorted(folder.iterdir())
    photos._told.clear()
    def opens(f):
        try: return bool(open_picture(f))
        except BadPicture: return False
    return dict(open={f.name for f in files if opens(f)}, usable={f.name for f in usable_images(folder, decode=True)},
                problem={f.name for f in files if problem_of(f) is None}, store={Path(f).name for f in presize_store(files, 40).rows})


# ---- what a file is

BRANDS = [(b'avif', [], 'AVIF'), (b'mif1', [b'avif', b'miaf'], 'AVIF'), (b'mif1', [b'mif1', b'heic'], 'HEIF'), (b'heic', [b'mif1'], 'HEIF'), (b'msf1', [b'avis'], 'AVIF'),
          (b'heix', [b'mif1'], 'HEIF'), (b'isom', [b'mp42'], 'a film'), (b'crx ', [b'isom'], 'a raw photo'), (b'mif1', [b'abcd']*20 + [b'avif'], 'AVIF')]


@pytest.mark.parametrize('major,others,kind', BRANDS, ids=str)
def test_all_brands_are_read(major, others, kind):
    assert kind_of((struct.pack('>I', 16 + 4*len(others)) + b'ftyp' + major + bytes(4) + b''.join(others) + bytes(99))[:256]) == kind


@pytest.mark.skipif(not reads('AVIF'), reason='this Pillow has no AVIF')
def test_an_avif_of_the_general_brand_is_one_thing_to_every_reader(tmp_path, monkeypatch):
    avif, folder = encoded(photo(), 'AVIF'), tmp_path/'set'
    folder.mkdir()
    (folder/'own.avif').write_bytes(avif)
    (folder/'general.avif').write_bytes(avif[:8] + b'mif1' + avif[12:])
    (folder/'sequence.avif').write_bytes(avif[:8] + b'msf1' + avif[12:])
    said = all_readers(folder, tmp_path/'cache', monkeypatch)
    assert all(names == {'own.avif', 'general.avif', 'sequence.avif'} for names in said.values()), said


def test_every_reader_takes_the_same_files(tmp_path, monkeypatch):
    folder, rng = tmp_path/'set', random.Random(3)
    folder.mkdir()
    kinds = ['JPEG', 'PNG', 'GIF', 'WEBP', 'TIFF', 'BMP', 'PPM']
    for i in range(120):
        kind = rng.choice(kinds)
        data = bytearray(encoded(photo(i, (40, 30)), kind))
        for _ in range(rng.choice((0, 1, 8))): data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < .3: del data[rng.randrange(len(data)):]
        (folder/f'{i:03}{FORMATS[kind][0]}').write_bytes(data)
    said = all_readers(folder, tmp_path/'cache', monkeypatch)
    assert said['open'] == said['usable'] == said['problem'] == said['store'] and 20 < len(said['open']) < 120


def test_which_suffixes_count_does_not_depend_on_the_machine():
    code = 'import mimetypes; mimetypes.init(); mimetypes.types_map.update({k: "image/x" for k in (".txt", ".csv")}); mimetypes.types_map.pop(".webp", 0)\n' \
           'from ch5clf.pictures import SUFFIXES; print(*sorted(SUFFIXES))'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.split()
    assert out == sorted(SUFFIXES) and '.webp' in out and '.txt' not in out


def test_heic(tmp_path):
    head = struct.pack('>I', 24) + b'ftypmif1' + bytes(4) + b'mif1heic'
    (tmp_path/'a.heic').write_bytes(head + struct.pack('>I4s', 40, b'mdat') + bytes(32))
    if not reads('HEIF'): assert 'pip install pillow-heif' in str(refused(tmp_path/'a.heic', 'HEIC'))
    else:
        refused(tmp_path/'a.heic', 'unreadable')
        photo().save(tmp_path/'b.heic')
        assert open_picture(tmp_path/'b.heic').size == (90, 70)


# ---- nothing runs, nothing waits, nothing explodes

@pytest.mark.skipif(os.name == 'nt', reason='a script without suffix does not start there')
def test_postscript_starts_no_program(tmp_path, monkeypatch):
    (tmp_path/'bin').mkdir()
    (tmp_path/'bin'/'gs').write_text(f'#!/bin/sh\ntouch "{tmp_path}/it ran"\n')
    (tmp_path/'bin'/'gs').chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path/'bin'), prepend=os.pathsep)
    monkeypatch.setattr('PIL.EpsImagePlugin.gs_binary', 'gs')
    data = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n'
    (tmp_path/'set').mkdir()
    file = tmp_path/'set'/'cat.jpg'
    file.write_bytes(data)
    (tmp_path/'set'/'dog.png').write_bytes(struct.pack('<4sIIIIII', b'\xc5\xd0\xd3\xc6', 32, len(data), 0, 0, 0, 0) + bytes(4) + data)  # EPS with a DOS header
    assert {names for said in all_readers(tmp_path/'set', tmp_path/'cache', monkeypatch).values() for names in said} == set()
    for way in (lambda: open_picture(data), lambda: open_picture(io.BytesIO(data)), lambda: open_picture(Image.open(file)), lambda: presized(file, 20), lambda: contact_sheet([file])):
        with pytest.raises(BadPicture): way()
    assert not (tmp_path/'it ran').exists()
    with Image.open(file) as im, pytest.raises(Exception): im.load()
    assert (tmp_path/'it ran').exists(), 'asked in general, Pillow does start it'


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no pipes here')
def test_pipes_devices_and_folders_are_never_opened(tmp_path, monkeypatch):
    monkeypatch.setenv('CH5CLF_CACHE', str(tmp_path/'cache'))
    os.mkfifo(tmp_path/'pipe.jpg')
    (tmp_path/'zero.jpg').symlink_to('/dev/zero')
    (tmp_path/'folder.jpg').mkdir()
    (tmp_path/'nowhere.jpg').symlink_to('gone')
    (tmp_path/'round.jpg').symlink_to('round.jpg')
    names = ['pipe.jpg', 'zero.jpg', 'folder.jpg', 'nowhere.jpg', 'round.jpg']
    for n in names: refused(tmp_path/n, 'no file')
    problems = presize_store([tmp_path/n for n in names], 40).problems
    assert len(problems) == 5 and all(': no file, ' in p for p in problems.values())


def png(w, h, depth=8, colour=6, rows=10**6):
    def chunk(name, body): return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(bytes(rows), 9)) + chunk(b'IEND', b'')


@pytest.mark.parametrize('w,h', [(13_000, 13_000), (80_000_000, 2), (80_000_000, 1), (1, 89_000_000), (2**31 - 1, 2**31 - 1), (9_460, 9_460)])
def test_nothing_over_the_limit_is_decoded(tmp_path, monkeypatch, w, h):
    (tmp_path/'set').mkdir()
    (tmp_path/'set'/'a.png').write_bytes(png(w, h))
    with pictures.quietly(): assert 'save a smaller copy' in str(refused(tmp_path/'set'/'a.png', 'huge'))
    assert not any(all_readers(tmp_path/'set', tmp_path/'cache', monkeypatch).values())
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', None) # what forum answers advise does not open the gate
    assert refused(tmp_path/'set'/'a.png', 'huge')


def test_a_picture_object_has_the_limit_too():
    with pytest.raises(BadPicture, match='huge'): open_picture(Image.new('1', (70_000, 4)))
    with pytest.raises(BadPicture, match='huge'): open_picture(Image.new('1', (10_000, 9_000)))


@pytest.mark.skipif(sys.platform != 'linux', reason='asks /proc')
@pytest.mark.parametrize('mode,most', [('RGBA', 450), ('P', 200), ('I;16', 320)])
def test_memory_below_the_limit(tmp_path, mode, most):
    "9,000 x 9,000 pixels, decoded at their own depth (324, 81, 162 MB); everything after that happens in bands."
    Image.new(mode, (9_000, 9_000), 200 if mode != 'RGBA' else (200, 30, 60, 128)).save(tmp_path/'a.png', compress_level=1)
    code = '''
import re, sys
from pathlib import Path
from ch5clf.pictures import presized
def mb(what): return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])//1000
before = mb("VmRSS")
x = presized(Path(sys.argv[1]), 160)
print(mb("VmHWM") - before, *x.shape)
'''
    used, *shape = map(int, subprocess.run([sys.executable, '-c', code, tmp_path/'a.png'], capture_output=True, text=True, check=True).stdout.split())
    assert shape == [160, 160, 3] and used < most, used


def test_large_pictures_wait_for_each_other(tmp_path, monkeypatch):
    "Memory does not grow with the threads."
    monkeypatch.setattr(pictures, '_LARGE', 1000)
    inside, most, real = [], [], pictures.on_screen
    def watched(im, *args):
        inside.append(1); most.append(len(inside))
        try: return real(im, *args)
        finally: inside.pop()
    monkeypatch.setattr(pictures, 'on_screen', watched)
    photo().save(tmp_path/'a.png')
    threads = [threading.Thread(target=lambda: [open_picture(tmp_path/'a.png') for _ in range(20)]) for _ in range(6)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(most) == 120 and max(most) == 1


# ---- as it is seen

@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF'])
def test_all_orientations(kind):
    for turn in range(1, 9):
        exif = Image.Exif(); exif[0x112] = turn
        data = encoded(photo(1), kind, exif=exif)
        im = open_picture(data)
        assert im.tobytes() == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert('RGB').tobytes()
        assert open_picture(im).tobytes() == im.tobytes(), 'it is not turned twice'


def test_a_damaged_note_beside_a_sound_picture():
    for note in (b'Exif\0\0MM\0*\0\0\0\x08\xff\xff' + b'\x01\x12\0\x03'*20, b'Exif\0\0', b'Exif\0\0II*\0\xff\xff\xff\xff', b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0'):
        assert open_picture(encoded(photo(), 'JPEG', exif=note)).size == (90, 70)


def test_depth():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(9, 0)
    for im in (Image.fromarray(ramp), Image.fromarray(ramp.astype(np.int32)), Image.fromarray(ramp.astype(np.float32)), Image.fromarray((ramp/65535).astype(np.float32))):
        assert abs(np.asarray(open_picture(im))[0, :, 0].astype(int) - np.arange(256)).max() <= 1
    twelve = Image.fromarray(ramp//16)
    assert abs(np.asarray(open_picture(twelve, scale=(0, 4095)))[0, :, 0].astype(int) - np.arange(256)).max() <= 1
    with pytest.raises(BadPicture, match='NaN'): open_picture(Image.fromarray(np.array([[1, np.nan, 0]], np.float32)))


def test_transparency_lies_on_white():
    glass = photo().convert('RGBA'); glass.putalpha(0)
    for data in (encoded(glass, 'PNG'), encoded(glass, 'WEBP'), encoded(glass.convert('LA'), 'PNG')): assert np.asarray(open_picture(data)).min() == 255
    palette = photo().quantize(8)
    clear = np.asarray(open_picture(encoded(palette, 'PNG', transparency=0)))[np.asarray(palette) == 0]
    assert (clear == 255).all() and len(clear)


def test_the_way_by_bands_shows_the_same(monkeypatch):
    for seed, size in enumerate([(300, 200), (37, 501), (600, 41), (1501, 799)]):
        im = photo(seed, size)
        for mode in ('RGB', 'RGBA', 'L', 'P', 'CMYK'):
            one = im.convert(mode)
            monkeypatch.setattr(pictures, '_LARGE', 2**24)
            plain, small = on_screen(one), presized(one, 40).astype(int)
            monkeypatch.setattr(pictures, '_LARGE', 0)
            assert on_screen(one).tobytes() == plain.tobytes()
            assert abs(presized(one, 40) - small).max() <= 6 and abs(presized(one, 40) - small).mean() < 1


# ---- cut files, and words

@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF', 'TIFF', 'BMP', 'WEBP', 'PPM'])
def test_the_switch_that_hides_cut_files_is_ignored(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    data = encoded(photo(size=(200, 150)), kind)
    (tmp_path/f'a{FORMATS[kind][0]}').write_bytes(data[:len(data)*2//3])
    with pytest.raises(BadPicture, match='truncated|unreadable'): open_picture(tmp_path/f'a{FORMATS[kind][0]}')
    assert problem_of(tmp_path/f'a{FORMATS[kind][0]}')
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True, 'it is put back'


def test_the_switch_under_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    whole = encoded(photo(size=(300, 200)), 'JPEG')
    (tmp_path/'whole.jpg').write_bytes(whole); (tmp_path/'cut.jpg').write_bytes(whole[:-400])
    wrong = []
    def look(name):
        for _ in range(40):
            try: ok = bool(open_picture(tmp_path/name))
            except BadPicture as e: ok = e.problem != 'truncated'
            if ok != (name == 'whole.jpg'): wrong.append(name)
    threads = [threading.Thread(target=look, args=(n,)) for n in ('whole.jpg', 'cut.jpg')*4]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not wrong and ImageFile.LOAD_TRUNCATED_IMAGES is True and pictures._strictly.inside == 0


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='nothing is forked here')
@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_worker_that_is_forked_while_threads_read_does_not_wait_for_them(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, '_LARGE', 1000)
    photo().save(tmp_path/'a.png')
    inside, go = threading.Event(), threading.Event()
    def hold():
        with pictures.one_at_a_time(photo()), pictures.quietly(), pictures._strictly.guard:
            inside.set()
            go.wait(30)
    t = threading.Thread(target=hold); t.start()
    inside.wait(30)
    child = os.fork()
    if not child:
        with pictures.quietly(): os._exit(0 if open_picture(tmp_path/'a.png').size == (90, 70) else 1)
    for _ in range(300):
        done, status = os.waitpid(child, os.WNOHANG)
        if done: break
        time.sleep(.05)
    else: os.kill(child, 9)
    go.set(); t.join()
    assert done and status == 0


def test_words():
    assert printable('말티즈 1.jpg') == '말티즈 1.jpg' and printable('\x1b]0;x\x07\r\n\u2066.jpg') == r'\x1b]0;x\x07\r\n\u2066.jpg'
    for e in (refused(Path('gone\x1b.jpg'), 'no file'), refused(Path('x'*300 + '.jpg'), 'no file'), refused(b'', 'empty'), refused(b'%PDF-1.7', 'not an image')):
        again = pickle.loads(pickle.dumps(e))
        assert isinstance(e, OSError) and str(again) == str(e) and str(e).isprintable() and e.words in str(e) and e.remedy in e.words


@pytest.mark.parametrize('error,problem', [(PermissionError(errno.EACCES, 'Permission denied'), 'not permitted'), (OSError(errno.EIO, 'Input/output error'), 'unreadable'), (MemoryError(), 'unreadable')])
def test_what_the_system_says_is_said(tmp_path, monkeypatch, error, problem):
    def fail(*args, **kwargs): raise error
    (tmp_path/'a.jpg').write_bytes(encoded(photo(), 'JPEG'))
    monkeypatch.setattr(pictures, 'open', fail, raising=False)
    assert str(refused(tmp_path/'a.jpg', problem)).startswith('a.jpg: ')


def test_three_hundred_damaged_files_raise_nothing_else():
    rng = random.Random(1)
    whole = [encoded(photo(i), k) for i, k in enumerate(('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF', 'PPM', 'JPEG2000'))] + ([encoded(photo(), 'AVIF')] if reads('AVIF') else [])
    opened = 0
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for _ in range(300):
            data = bytearray(rng.choice(whole))
            for _ in range(rng.randint(1, 8)): data[rng.randrange(min(len(data), rng.choice([60, 10**6])))] = rng.randrange(256)
            if rng.random() < .3: del data[rng.randrange(len(data)):]
            try: opened += open_picture(bytes(data)).mode == 'RGB'
            except BadPicture as e: assert e.words
    assert 20 < opened < 280


# ---- folders

def test_deeply_nested_folders_take_no_time_and_no_stack(tmp_path):
    at = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1201):
            os.mkdir('d'); os.chdir('d')
        Path('cat.jpg').touch()
        start = time.perf_counter()
        files, odd = files_below(tmp_path)
        assert time.perf_counter() - start < 5 and [f.name for f in files] == ['cat.jpg'] and not odd
    finally: # pytest's own clearing away would run out of stack
        Path('cat.jpg').unlink(missing_ok=True)
        while Path.cwd() != tmp_path.resolve():
            os.chdir('..')
            os.rmdir('d')
        os.chdir(at)


def test_limits_are_what_the_words_say():
    assert MAX_PIXELS == 89_478_485 and str(MAX_PIXELS//10**6) == '89'
