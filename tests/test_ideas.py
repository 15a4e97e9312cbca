"""Short answers judged by their ideas: what must pass, what must fail and with which feedback, the notes this course
started from, reversals, negations, lists of words, restated questions, and ten thousand answers that nobody meant."""
import json, random, re, time
from pathlib import Path

import pytest
from ch5clf.ideas import READ, judge, language_of, normalise
from ch5clf.rubrics import rubrics

HERE = Path(__file__).parent
CASES = {q: c for f in ('quiz_cases_text.json', 'idea_cases_free.json') for q, c in json.loads((HERE/f).read_text(encoding='utf-8')).items()}
RIGHT = [(q, lang, t) for q, c in CASES.items() for lang, ts in c['right'].items() for t in ts]
WRONG = [(q, lang, *w) for q, c in CASES.items() for lang, ws in c['wrong'].items() for w in ws]
TEXT = ['q01', 'q03', 'q06', 'q09', 'q11', 'q12', 'q14', 'q16', 'q19', 'q21', 'q23', 'further']

def said(verdict):
    "Everything that a learner may be told"
    return ' '.join([m.message[verdict.lang] for m in verdict.misconceptions] + [i.topic[verdict.lang] for i in verdict.missing + verdict.found])

@pytest.mark.parametrize('q,lang,text', RIGHT)
def test_right(q, lang, text):
    assert judge(text, rubrics[q]).state == 'right'

@pytest.mark.parametrize('q,lang,text,state,feedback', WRONG)
def test_wrong_with_its_feedback(q, lang, text, state, feedback):
    verdict = judge(text, rubrics[q], lang)
    assert verdict.state == state and feedback in said(verdict)

def test_enough_cases():
    assert set(rubrics) == set(CASES)
    for q in TEXT:
        for lang in ('en', 'ko'): assert len(CASES[q]['right'][lang]) >= 3 and len(CASES[q]['wrong'][lang]) >= 5, (q, lang)

# the answers in the notes that this course was made from
NOTES = {
    'q01': ('partly', 'Presize Strategy in fastai\n보통은 GPU에서 수행되나, 계산→보간의 반복으로 데이터 손실 및 품질 저하\naugmentation → 이미지의 최대 크기에서 수행됨 (CPU)\nRandomSizeCrop → 최종 이미지 사이즈에서 축소되어 수행됨 (GPU)'),
    'q03': ('right', '데이터 목록으로서의 파일 묶음\n문서, 이미지 등\n폴더 / 파일 이름으로 목록에 대한 정보 제공\n테이블 데이터\n각 행은 하나의 데이터\n데이터 ↔ 테이블/다른 형태 데이터 사이 관계 제공'),
    'q06': ('right', 'rotation - empty zone - interpolation → bad quality\nzoom in - interpolation → bad quality'),
    'q07': ('right', 'DataLoaders.show_batch(nrows=<>, ncols=<>)'),
    'q08': ('partly', 'DataBlock.sumarry()'),
    'q10': ('right', 'activation_fuction : softmax\nnegative_log_likelihood\n(log_softmax + nll_loss) = cross_entrophy'),
    'q11': ('right', '어떤 값도 0, 1 사이에\n모든 값 더해서 1\n확률분포 / act의 차이를 지수를 통해 amplify해 줌'),
    'q12': ('right', 'multi-label classifiction problem'),
    'q14': ('right', 'it uses as list comprehension with if-else statements.\nbinary case only'),
    'q15': ('right', 'not defined. 로그는 음수를 진수로 취할 수 없다.\ny는 지수 계산을 통해 나온 값. 음수가 불가능.'),
    'q16': ('partly', 'minimum loss 달성된 부분에서 한 단계 줄이기\nmin / 10\nloss가 확실히 줄어들기 시작하는 마지막 부분'),
    'q17': ('right', '모든 다른 layers들을 freezing한 채로 마지막 layer만 1 epoch 학습을 수행\n모든 layer를 unfreeze하고 (n) epoch만큼 학습시킴'),
    'q18': ('right', 'method??'),
    'q19': ('partly', 'lower layer, higher layer different learning rate'),
    'q20': ('right', 'first : the earliest layers\nsecond : the final layer\nin the middle → multiplicatively equidistant throughout the range'),
    'q21': ('right', 'learning rate이 더 낮게 되기 까지 충분한 시간이 되기 전에 종료되버릴 위험\n모델을 향상시킬 수 있는 데 종료되어 버림'),
    'q22': ('right', 'how deep nn is (num of layers)'),
    'q23': ('partly', 'float point drop\n텐서의 정보량 줄여서 연산 속도 빠르게'),
}

@pytest.mark.parametrize('q', NOTES)
def test_notes(q):
    state, text = NOTES[q]
    assert judge(text, rubrics[q]).state == state

def test_notes_faults_are_named():
    names = lambda q: [m.name for m in judge(NOTES[q][1], rubrics[q]).misconceptions]
    assert 'aug-on-cpu' in names('q01') and 'misspelt' in names('q08') and 'begin' in names('q16') and 'comprehension' in names('q14')

SWAPS = [
    ('q01', 'small on the CPU first, then large on the GPU'), ('q01', 'GPU에서 먼저 크게 키우고 CPU에서 작게 줄여요'),
    ('q10', 'nll_loss and after it log_softmax'), ('q10', 'nll_loss 다음에 log_softmax'),
    ('q17', 'first the whole network is trained, then only the head'), ('q17', '먼저 전체를 학습하고 그다음 헤드만 학습해요'), ('q17', 'freeze the head, train the body'),
    ('q19', 'large for the early layers, small for the late ones'), ('q19', 'small rates for the head, large ones for the first layers'),
    ('q19', '앞쪽은 크게, 뒤쪽은 작게'), ('q19', '작은 학습률은 마지막 층에, 큰 학습률은 처음 층에'), ('q19', 'early layers get higher rates than late layers'),
    ('q19', '앞쪽 층이 뒤쪽 층보다 학습률이 커요'), ('q20', 'a for the last layers, b for the first, equal ratios between'), ('q20', 'a는 마지막 층, b는 첫 층, 사이는 등비'),
    ('q22', 'resnet50 has more layers than resnet101'), ('q22', 'resnet101이 resnet50보다 층이 적어요'), ('further', 'target minus softmax'),
]
@pytest.mark.parametrize('q,text', SWAPS)
def test_swapped_is_wrong_and_named(q, text):
    verdict = judge(text, rubrics[q])
    assert verdict.state in ('wrong', 'partly') and verdict.misconceptions and not (q in ('q19', 'q17', 'q22') and verdict.state == 'partly')

STRAIGHT = [
    ('q19', 'small rates for the first layers, large ones for the head'), ('q19', 'late layers get higher rates than early layers'),
    ('q19', '큰 학습률은 뒤쪽 층에, 작은 학습률은 앞쪽 층에'), ('q19', 'early and late layers get small and large rates respectively'),
    ('q19', '뒤쪽 층이 앞쪽 층보다 학습률이 커요'), ('q17', 'the head is trained before the whole network is unfrozen'), ('q22', 'resnet50 has fewer layers than resnet101'),
]
@pytest.mark.parametrize('q,text', STRAIGHT)
def test_any_order_of_the_same_relation(q, text):
    assert judge(text, rubrics[q]).state == 'right'

DENIED = [
    ('q11', 'the values do not sum to 1'), ('q11', '합이 1이 되지 않아요'), ('q11', "they don't add up to one"), ('q19', 'the early layers do not get smaller rates'),
    ('q19', '앞쪽 층의 학습률을 작게 하지 않아요'), ('q22', 'not the number of layers'), ('q22', '층의 수가 아니에요'), ('q22', '깊이가 아니라 입력 크기'),
    ('q07', 'not show_batch'), ('q07', 'show_batch 말고 summary'), ('q08', 'show_batch instead of summary'), ('q12', 'never with multi-label data'), ('q23', 'no half precision'),
]
@pytest.mark.parametrize('q,text', DENIED)
def test_denied_is_not_right(q, text):
    assert judge(text, rubrics[q]).state not in ('right', 'partly')

DOUBLE = [
    ('q11', 'the values are never outside 0 to 1, never fail to sum to 1, so they are probabilities'),
    ('q09', '아니요. 모델 없이는 잘못된 레이블을 찾을 수 없으니 먼저 학습해서 모델로 오류를 찾아요'),
    ('q22', 'not the input size but the number of layers'), ('q22', '입력 크기가 아니라 층의 수예요'),
    ('q19', 'not the early but the late layers get the larger rates'),
]
@pytest.mark.parametrize('q,text', DOUBLE)
def test_denying_the_wrong_thing_is_no_denial(q, text):
    verdict = judge(text, rubrics[q])
    assert verdict.state == 'right' and not verdict.misconceptions

LISTS = {
    'q01': ['CPU GPU large small resize batch augmentation interpolation quality margin', 'CPU GPU 여유 보간 화질 배치 크기 증강 모서리'],
    'q03': ['file folder table label csv image row path name', '파일 폴더 표 레이블 이름 이미지 행'],
    'q11': ['softmax probability sum zero one between class value distribution', 'softmax 확률 합 범위 클래스 분포 값'],
    'q16': ['minimum ten loss steep rate curve finder slope divide', '최소 학습률 곡선 가파름 손실 열 지점'],
    'q17': ['freeze unfreeze head body layers epoch train all', '동결 해제 헤드 전체 층 에포크 학습'],
    'q19': ['layers rate early late small large discriminative learning', '층 학습률 초기 후기 작음 큼 차등'],
    'q21': ['early stopping cycle rate epoch low end stop before', '조기 종료 학습률 사이클 에포크 낮음 끝'],
    'q23': ['half precision memory fast gpu float bits speed', '반정밀도 메모리 속도 비트 GPU 부동소수점'],
}
@pytest.mark.parametrize('q,text', [(q, t) for q, ts in LISTS.items() for t in ts])
def test_list_of_words_is_no_answer(q, text):
    assert judge(text, rubrics[q]).state != 'right'

def test_misspelt_identifier_is_almost():
    for q, text in (('q08', 'DataBlock.sumarry()'), ('q07', 'show_bacth'), ('q07', 'dls.showbatch()'), ('q10', 'log_sofmax, nll_loss')):
        verdict = judge(text, rubrics[q])
        assert verdict.state == 'partly' and any(m.nearly for m in verdict.misconceptions), text

def test_slips_of_the_pen_are_forgiven():
    assert judge('smaller leraning rates for the earlierr layers and larger for the deepr ones', rubrics['q19']).state == 'right'
    assert judge('smaller leraning rates for the deepr layers and larger for the earlierr ones', rubrics['q19']).state == 'wrong'
    # words of up to five letters are not corrected: too many are near another one. Then we cannot tell
    assert judge('smal leraning rates for the erly layers, larger for the latr layers', rubrics['q19']).state == 'unsure'
    assert judge('each value is betwen 0 and 1, they sum to 1, so they are probabilites', rubrics['q11']).state == 'right'
    assert judge('값마다0과1사이이고다더하면1이라서확율로볼수있음', rubrics['q11']).state == 'right'

@pytest.mark.parametrize('text', ["I don't know", '모르겠어요', 'please mark this as right', '정답으로 처리해 주세요', 'because it is better', 'yes', '네', 'ok', 'a', '1', '좋아요'])
def test_saying_nothing_is_not_right(text):
    assert not [q for q in rubrics if judge(text, rubrics[q]).state in ('right', 'partly')]

def test_empty_is_not_attempted():
    for text in ('', ' ', '\n\t', '...', '---', '　'): assert judge(text, rubrics['q01']).state == 'not attempted', repr(text)

def test_topics_and_messages_in_both_languages():
    for q, r in rubrics.items():
        for d in [i.topic for i in r.ideas] + [m.message for m in r.misconceptions]:
            assert language_of(d['en']) == 'en' and language_of(d['ko']) == 'ko'
            assert '당신' not in d['ko'] and not re.search(r'을\(|를\(|이\(|가\(|은\(|는\(', d['ko'])
        assert all(re.search(r'(요|죠|까요)[.?]$', m.message['ko']) for m in r.misconceptions), q

def test_topics_do_not_answer():
    for q, r in rubrics.items():
        for lang in ('en', 'ko'):
            told = '. '.join([i.topic[lang] for i in r.ideas] + [m.message[lang] for m in r.misconceptions])
            assert judge(told, r).state != 'right', (q, lang)

def test_repr_holds_no_relation():
    assert 'EARLY' not in repr(rubrics['q19'].ideas) + repr(judge('large', rubrics['q19']))

@pytest.mark.parametrize('kind', ['marks', 'unicode', 'hangul', 'latin'])
def test_ten_thousand_answers_that_nobody_meant(kind):
    rng = random.Random(kind)
    letters = {'marks': 'abc가나다 ?.,!0123-*()[]{}\\/<>"\'\n\t\x00ㅎㅏㄱ한ﷺ😀', 'hangul': None, 'latin': 'abcdefghijklmnopqrstuvwxyz    ', 'unicode': None}[kind]
    def draw():
        n = rng.randint(0, 60)
        if kind == 'unicode': return ''.join(chr(rng.randint(1, 0x10ffff)) for _ in range(n))
        if kind == 'hangul': return ''.join(rng.choice((' ', chr(rng.randint(0xAC00, 0xD7A3)), chr(rng.randint(0xAC00, 0xD7A3)))) for _ in range(n))
        return ''.join(rng.choice(letters) for _ in range(n))
    for _ in range(2500):
        q, text = rng.choice(list(rubrics)), draw()
        assert judge(text, rubrics[q]).state != 'right', (q, text)

@pytest.mark.parametrize('text', ['a'*10**6, ' '*10**6, '가'*10**5, 'not '*5000, 'sum to '*3000, '학습률 '*3000, '?'*10**5, '??'*10**5, ', '*10**5, '0 '*5000,
    'early small late large '*500, '동결 해제 '*1000, 'loss of '*3000, 'ᄒ'*50_000, '\ud800'*100, 'x '*3000 + 'corner'])
def test_huge_and_hostile_in_bounded_time(text):
    start = time.process_time()
    assert not [q for q in rubrics if judge(text, rubrics[q]).state == 'right']
    assert time.process_time() - start < 20

def test_nothing_is_read_beyond_the_bound():
    assert len(normalise('ﷺ'*READ)) <= READ
    assert judge('x'*READ + ' the number of layers', rubrics['q22']).state != 'right'
