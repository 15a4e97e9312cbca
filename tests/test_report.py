"The report in a real browser: nothing is fetched, nothing overflows, light and dark differ, class names are text."
import os
import re
import shutil

import pytest

from test_cli_photos import trained  # noqa: F401 (a fixture)

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


def test_report_is_self_contained(trained):  # noqa: F811
    page = (trained/'애완.html').read_text(encoding='utf-8')
    assert not re.search(r'(?:src|href)="(?!data:)|url\(|@import|<script', page) and len(page) < 500_000
    assert '말티즈' in page and '고양이' in page and str(trained.parent) not in page
    assert 'held-back pictures' in page and '95 % interval' in page and 'ch5clf predict' in page


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason='no Chromium here')
def test_report_in_a_browser(trained, tmp_path):  # noqa: F811
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    with sync_api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        colours, asked, said = set(), [], []
        for scheme in ('light', 'dark'):
            page = browser.new_page(color_scheme=scheme, viewport=dict(width=390, height=800))
            page.on('request', lambda r: asked.append(r.url))
            page.on('console', lambda m: said.append(m.text))
            page.goto((trained/'애완.html').as_uri())
            colours.add(page.evaluate('getComputedStyle(document.body).backgroundColor'))
            assert page.evaluate('document.documentElement.scrollWidth') <= 390, 'a phone does not scroll sideways'
            assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            assert page.locator('table th[scope=row]').all_inner_texts()[:2] == ['고양이', '말티즈']
            page.pdf(path=tmp_path/f'{scheme}.pdf', format='A4')
        browser.close()
    assert len(colours) == 2 and not said and not [u for u in asked if not u.startswith(('file:', 'data:'))]
    assert os.path.getsize(tmp_path/'dark.pdf') > 5000
