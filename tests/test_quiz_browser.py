"The questionnaire in JupyterLab, in a real browser: a card answered by mouse, one by keyboard, languages, themes, a restart."
import contextlib, json, os, re, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import pytest

from ch5clf.cli import jupyter_command, jupyter_env

ROOT = Path(__file__).resolve().parent.parent
sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
pytest.importorskip('jupyterlab', reason='JupyterLab is not installed')
pytest.importorskip('ipykernel', reason='ipykernel is not installed')
CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
if CHROMIUM is None: pytest.skip('no Chromium on this machine', allow_module_level=True)


def free_port():
    with contextlib.closing(socket.socket()) as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture
def lab(tmp_path):
    "A JupyterLab as `ch5clf course` starts it: folder, settings, workspace and progress all live in a temporary folder."
    work = tmp_path / 'work'
    work.mkdir()
    shutil.copy(ROOT / 'nbs' / '05_questionnaire.ipynb', work)
    env = {**jupyter_env(work), 'CH5CLF_PROGRESS': str(tmp_path / 'progress'), 'PYTHONPATH': str(ROOT)}
    for name in ('CH5CLF_LANG', 'IN_TEST', 'PYTEST_CURRENT_TEST'): env.pop(name, None)
    for name in ('JUPYTER_CONFIG_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR', 'IPYTHONDIR'): env[name] = str(tmp_path / name)
    port = free_port()
    url = f'http://127.0.0.1:{port}'
    command = [*jupyter_command(work, browser=False), f'--port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=secret']
    with open(tmp_path / 'lab.log', 'wb') as log:
        job = subprocess.Popen(command, cwd=work, env=env, stdout=log, stderr=log)
        try:
            for _ in range(240):
                if job.poll() is not None: break
                try:
                    urllib.request.urlopen(f'{url}/api?token=secret', timeout=2).read()
                    break
                except OSError: time.sleep(.5)
            else: pytest.fail((tmp_path / 'lab.log').read_text(errors='replace')[-2000:])
            assert job.poll() is None, (tmp_path / 'lab.log').read_text(errors='replace')[-2000:]
            yield url, tmp_path / 'progress' / 'progress.json'
        finally:
            job.terminate()
            try: job.wait(20)
            except subprocess.TimeoutExpired: job.kill()


class Dialogs:
    "Puts away each dialog that comes unasked and hides the page, and keeps its text: a reader should meet none."
    def __init__(self, page):
        self.page, self.any, self.unasked = page, page.locator('.jp-Dialog').first, []
        self.watch()
    def watch(self): self.page.add_locator_handler(self.any, self._put_away)
    def _put_away(self, dialog):
        self.unasked.append(dialog.inner_text())
        dialog.locator('button').first.click()
    def accept(self):
        "The one that was asked for."
        self.page.remove_locator_handler(self.any)
        self.page.locator('.jp-Dialog .jp-mod-accept').click()
        self.any.wait_for(state='detached')
        self.watch()


def quiet(page):
    "Wait until a reader would begin to work: no splash screen lies over the page any more, and the kernel is idle."
    page.locator('#jupyterlab-splash').wait_for(state='detached')
    page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()


def cell_with(page, text):
    "The code cell whose source holds `text`."
    return page.locator('.jp-Notebook .jp-CodeCell', has=page.locator('.cm-content', has_text=text)).first


def run(page, cell, source=None):
    "Run a cell, with new source if given."
    editor = cell.locator('.cm-content')
    editor.click()
    if source is not None:
        page.keyboard.press('Control+A')
        page.keyboard.press('Delete')
        page.keyboard.insert_text(source)
    page.keyboard.press('Control+Enter')


def load(page, cell, word):
    "Run the first cell until it has run: keys pressed while the notebook is still settling are lost."
    for last in (False, False, False, True):
        run(page, cell, f"%load_ext ch5clf.questions\nfrom ch5clf.questions import progress, questions, sitting, today\nprint('{word}')")
        try: return sync_api.expect(cell.locator('.jp-OutputArea-output').last).to_have_text(word, timeout=60_000 if last else 10_000)
        except AssertionError:
            if last: raise


def card(page, id):
    "The output of the cell that shows the card of a question, run anew."
    cell = cell_with(page, f"questions['{id}']")
    cell.scroll_into_view_if_needed()
    run(page, cell)
    out = cell.locator('.jp-OutputArea')
    sync_api.expect(out.locator('.widget-vbox').first).to_be_visible()
    return out


def kept_of(path, id): return json.loads(path.read_text(encoding='utf-8'))['questions'].get(id, {})


def test_cards(lab, tmp_path):
    url, kept = lab
    expect = sync_api.expect
    shots = Path(os.environ.get('CH5CLF_SHOTS', tmp_path))
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1300, height=1400))
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.goto(f'{url}/lab/tree/05_questionnaire.ipynb?token=secret&reset')
        dialogs = Dialogs(page)
        first = cell_with(page, '%load_ext')
        first.wait_for()
        quiet(page)
        load(page, first, 'loaded')

        # by mouse
        out = card(page, 'r01')
        out.locator('input[type=radio]').nth(0).check()
        out.locator('button', has_text='check').click()
        expect(out).to_contain_text('no spare margin')
        out.locator('button', has_text='hint').click()
        expect(out).to_contain_text('Hint 1 of')
        out.locator('button', has_text='solution').click()
        expect(out).to_contain_text('Resize or crop to one large size')
        out.locator('button', has_text='I disagree').click()
        out.locator('input[type=text]').last.fill('mine says the same')
        out.locator('button', has_text='keep it').click()
        expect(out).to_contain_text('Nothing was sent')
        out.locator('input[type=radio]').nth(2).check()
        out.locator('button', has_text='check').click()
        expect(out).to_contain_text("That's right.")
        assert kept_of(kept, 'r01')['best'] == 1
        page.screenshot(path=shots / 'card-choice-light.png')

        # by keyboard alone: own words, then the button that confirms
        out = card(page, 'q19')
        out.locator('textarea').focus()
        page.keyboard.type('the first layers more slowly than the last')
        page.keyboard.press('Tab')
        page.keyboard.press('Enter')
        expect(out).to_contain_text('I read:')
        page.screenshot(path=shots / 'card-read-back-light.png')
        for _ in range(9):
            page.keyboard.press('Tab')
            if page.evaluate('document.activeElement.innerText') == "yes, that's what I mean": break
        page.keyboard.press('Enter')
        expect(out).to_contain_text("That's right.")
        assert kept_of(kept, 'q19')['best'] == 1

        # the language changes and stays
        out.locator('button', has_text='한국어').click()
        expect(out).to_contain_text('차등 학습률')
        expect(out).to_contain_text('맞았어요')
        other = card(page, 'q22')
        expect(other.locator('button', has_text='확인').first).to_be_visible()
        labels = other.locator('select, textarea').evaluate_all('all => all.map(o => (o.labels && o.labels[0] || {}).innerText || "")')
        assert labels and all(labels), labels

        page.locator('.lm-MenuBar-item', has_text='Kernel').click()
        page.locator('.lm-Menu-item[data-command="kernelmenu:restart"]').click()
        dialogs.accept()
        quiet(page)
        load(page, first, 'loaded again')
        out = card(page, 'q19')
        expect(out).to_contain_text('전에 맞혔어요')
        page.locator('.lm-MenuBar-item', has_text='Settings').click()
        page.locator('.lm-Menu-item', has_text='Theme').first.hover()
        page.locator('.lm-Menu-item', has_text='JupyterLab Dark').first.click()
        page.locator('body[data-jp-theme-name="JupyterLab Dark"]').wait_for(state='attached')
        page.wait_for_timeout(1500)
        out.scroll_into_view_if_needed()
        page.screenshot(path=shots / 'card-dark.png')
        ink = out.locator('.widget-html-content div').first.evaluate('e => getComputedStyle(e).color')
        assert sum(map(int, re.findall(r'\d+', ink)[:3])) > 380, f'{ink}: light ink on a dark page'
        report = cell_with(page, 'progress()')
        run(page, report)
        expect(report.locator('.jp-OutputArea-output').last).to_contain_text('q19')
        browser.close()
    assert not dialogs.unasked
    assert kept_of(kept, 'q19')['state'] == 'right'
    assert json.loads(kept.read_text(encoding='utf-8'))['language'] == 'ko'
