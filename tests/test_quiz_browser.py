"The questionnaire in JupyterLab, in a real browser: answer, read the reply, restart the kernel, find the progress again."
import contextlib, json, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import pytest

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
    "A JupyterLab of its own: folder, settings, workspace and progress all live in a temporary folder."
    work = tmp_path / 'work'
    work.mkdir()
    shutil.copy(ROOT / 'nbs' / '05_questionnaire.ipynb', work)
    env = {**os.environ, 'CH5CLF_PROGRESS': str(tmp_path / 'progress'), 'PYTHONPATH': str(ROOT)}
    for name in ('CH5CLF_LANG', 'IN_TEST', 'PYTEST_CURRENT_TEST'): env.pop(name, None)
    for name in ('JUPYTER_CONFIG_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR', 'IPYTHONDIR'): env[name] = str(tmp_path / name)
    port = free_port()
    url = f'http://127.0.0.1:{port}'
    with open(tmp_path / 'lab.log', 'wb') as log:
        job = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0',
                                '--IdentityProvider.token=secret', f'--ServerApp.root_dir={work}', '--LabApp.news_url=', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'],
                               cwd=work, env=env, stdout=log, stderr=log)
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
        run(page, cell, f"%load_ext ch5clf.questions\nfrom ch5clf.questions import progress, questions\nprint('{word}')")
        try: return sync_api.expect(cell.locator('.jp-OutputArea-output').last).to_have_text(word, timeout=60_000 if last else 10_000)
        except AssertionError:
            if last: raise


def test_answer_restart_and_find_it_again(lab):
    url, kept = lab
    expect = sync_api.expect
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        page = browser.new_page(viewport=dict(width=1300, height=2400))
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        page.goto(f'{url}/lab/tree/05_questionnaire.ipynb?token=secret&reset')
        first = cell_with(page, '%load_ext')
        first.wait_for()
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()
        load(page, first, 'loaded')
        answer = cell_with(page, '%%answer q07')

        run(page, answer, '%%answer q07\nshow_bach')
        reply = answer.locator('.jp-OutputArea-output').last
        expect(reply).to_contain_text('partly')
        expect(reply).to_contain_text('spelling')
        assert reply.locator('b').count() >= 1, 'the reply is drawn as HTML'

        run(page, answer, '%%answer q07\n배치를 show_batch로 그려 봐요')
        expect(answer.locator('.jp-OutputArea-output').last).to_contain_text('맞았어요')
        assert json.loads(kept.read_text(encoding='utf-8'))['questions']['q07']['tries'] == 2

        page.locator('.lm-MenuBar-item', has_text='Kernel').click()
        page.locator('.lm-Menu-item[data-command="kernelmenu:restart"]').click()
        page.locator('.jp-Dialog .jp-mod-accept').click()
        page.locator('.jp-Dialog').wait_for(state='detached')
        page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').wait_for()

        load(page, first, 'loaded again')
        report = cell_with(page, 'progress().next')
        run(page, report, "progress('en')  # and not only progress().next")
        output = report.locator('.jp-OutputArea-output').last
        expect(output).to_contain_text('1 of')
        expect(output).to_contain_text('q07')
        expect(output.locator('svg rect').first).to_be_visible()
        browser.close()
    assert json.loads(kept.read_text(encoding='utf-8'))['questions']['q07']['state'] == 'right'
