"""A short text in English or Korean becomes a proposal: which option of each slot it says; what it can't read stays open."""
import itertools, re, unicodedata
from functools import lru_cache
from importlib.resources import files

from ch5clf.answers import distance, has_hangul, unwrap

READ = 1000
_H = '가-힣'

def normalise(text:str) -> str:
    text = unicodedata.normalize('NFKC', unicodedata.normalize('NFC', str(text)[:READ])).casefold()
    text = text.translate({0x2018: "'", 0x2019: "'", 0x201c: '"', 0x201d: '"', 0x2212: '-', 0x2013: '-', 0x2014: ' - ',
                           0x2192: ' -> ', 0x2022: '\n', 0x301c: '~', 0xb1: '+-'})
    text = re.sub(r'\\(?:text|mathrm|operatorname)|[\\{}$]', '', text)
    text = re.sub(r'\*\*|[`"]|[\u200b-\u200f\ufeff\u00ad]', '', text)
    text = re.sub(r'(?<=[a-z])[-_](?=[a-z])', ' ', text)
    text = re.sub(r'(?<=\d), ?(?=\d)', '~', text)
    text = _TYPOS.sub(lambda m: _typos[m[0]], text)
    text = re.sub(r'(?<![a-z])[a-z]{6,20}(?![a-z])', lambda m: _nearest(m[0]), text)
    return re.sub(r'[^\S\n]+', ' ', text).strip()

_typos = {'확율': '확률', '학습율': '학습률', '래이어': '레이어', '소프트멕스': '소프트맥스', '않되': '안 되', '않됨': '안 됨', '안됨': '안 됨',
          '못함': '못 함', '베치': '배치', 'dont ': "don't ", 'doesnt': "doesn't", 'isnt': "isn't", 'cant ': "can't "}
_TYPOS = re.compile('|'.join(_typos))

def _table(name): return files('ch5clf').joinpath('words', name).read_text(encoding='utf-8')

@lru_cache(1)
def concepts():
    forms, pairs, text = {}, {}, re.sub(r'\n\s+', ' ', _table('words.txt'))
    for line in text.splitlines():
        if '<>' in line:
            one, other = line.split(' <> ')
            pairs[one], pairs[other] = other, one
        elif ' = ' in line and line[0] != '#':
            name, said = line.split(' = ', 1)
            en, _, ko = said.partition(' | ')
            forms[name] = [[f.strip() for f in o.split(', ') if f.strip(' -')] for o in (en, ko)]
    return forms, pairs

def _form(form):
    "One form as a pattern without repeats inside repeats: time is linear in the text."
    begin = r'(?<![a-z0-9가-힣])' if form[0] == '^' else r'(?<![a-z0-9])' if form[0].isascii() and form[0].isalnum() else ''
    star = form[-1] == '*'
    form = form.strip('^*')
    end = '[a-z]*' if star else r'(?![a-z0-9])' if form[-1].isascii() and form[-1].isalnum() else ''
    body = re.sub(rf'([{_H}])(?=[{_H}])', r'\1 ?', re.escape(form).replace(r'\*', '[a-z]{0,12}')).replace(r'\ ', ' ?')
    return begin + body + end

@lru_cache(None)
def pattern(name):
    en, ko = concepts()[0][name]
    return re.compile('|'.join(map(_form, sorted(en + ko, key=len, reverse=True))))

@lru_cache(1)
def _vocabulary():
    return frozenset(w for en, _ in concepts()[0].values() for f in en for w in re.findall('[a-z]{6,}', f)) | _PLAIN

@lru_cache(20_000)
def _nearest(word):
    "A known word that is one slip away, or two for long ones; the word itself where it is known or none is near."
    words = _vocabulary()
    if word in words or any(word.startswith(w) for w in words): return word
    most = 1 if len(word) < 9 else 2
    scored = sorted((distance(word, w, most), w) for w in words if w[0] == word[0] and abs(len(w) - len(word)) <= most)
    return scored[0][1] if scored and scored[0][0] <= most else word

_PLAIN = frozenset('''should because before really simply either rather number numbers values different training
    learning picture pictures images always important something anything nothing another through between without
    softmax target method function network exactly several classes'''.split())
_END = re.compile(rf'[;\n!]+|(?<!\?)\?(?!\?)(?=\s|$)|(?<![0-9])\.(?=\s|$)|(?<=[다요함음됨임])\.|(?<=\s)(?=[2-9][.)]\s)|[①②③]')
_CLAUSE = re.compile(unwrap(rf'''
    ,(?!\d)|:(?=\s)|->|=>|\((?=[^)]{{12}})|(?<=[^(]{{9}})\)|(?<![a-z])(?:but|while|whereas|then|because|since|although|
    though|so that|so|and|which|instead of|rather than|as)(?![a-z])|(?<=[{_H}])(?:고|며|면서|지만|는데|은데|인데|니까|므로|때문에|어서|아서|
    해서|라서|거든요|려면|라)(?=[\s,]|$)|아니라|말고|(?<=않)고|(?<![{_H}])(?:그리고|하지만|반면|그러나|그래서|그다음|다음|이후|혹은|또는|아니면)'''))
_NOT = re.compile(unwrap(rf'''
    (?<![a-z])(?:not(?! only| just the| merely)|never|no(?! matter|t)|none|nor|neither|without|cannot|hardly|instead of|
    rather than|nothing|avoid[a-z]*|prevent[a-z]*|doesn't|isn't|don't|aren't|won't|can't|didn't|wouldn't|shouldn't|hasn't|
    haven't|wasn't|couldn't|needn't|unlike|w/o|nobody)(?![a-z])|
    않|(?<![{_H}])안(?=\s?[{_H}])|아니(?!면|요[, .]|요$|오[, ])|아닌|아님|아닙|못|없(?!어지)|말고|말아|마세요|대신|방지|피하|막|x(?=\s*[+,)]|$)'''))
_FREE = re.compile(r'밖에[^,.]{0,8}?(?:못|없|안)|뿐(?:만)?\s?(?:이\s?)?아니|만\s?아니|상관\s?없|틀림\s?없|수밖에')
_START_NO = re.compile(r'^(?:no|nope|nah)(?![a-z])|^아니(?:요|오|에요|다|[,. ])|^ㄴㄴ')
_START_YES = re.compile(r'^(?:yes|yeah|yep)(?![a-z])|^(?:네|예|응)(?=[,. ])')

class Reading:
    "What was read: slot -> option or None; whether it was plain; the clause of each; why nothing was read, if so."
    def __init__(self, read, plain=False, quotes=None, why=''):
        self.read, self.plain, self.quotes, self.why = read, plain, quotes or {}, why

class _Text:
    "A normalised text with its sentences, clauses and denials."
    def __init__(self, text):
        self.text = text
        self.sentences = self._spans(_END, 0, len(text))
        self.clauses = [c for a, b in self.sentences for c in self._spans(_CLAUSE, a, b)]
        free = [m.span() for m in _FREE.finditer(text)]
        self.nots = [m.span() for m in _NOT.finditer(text) if not any(a <= m.start() < b for a, b in free)]
        if m := _START_NO.match(text): self.nots = [n for n in self.nots if n[0] >= m.end()]
        self.found = {}
    def _spans(self, at, start, end):
        marks = [m.span() for m in at.finditer(self.text, start, end)]
        edges = [start] + [e for m in marks for e in (m[1] if self.text[m[0]:m[1]] and not has_hangul(self.text[m[0]:m[1]]) else m[1],)] + [end]
        return [(a, b) for a, b in zip(edges, edges[1:]) if self.text[a:b].strip()]
    def find(self, name):
        if name == 'NOT': return self.nots
        if name in ('STARTNO', 'STARTYES'):
            m = (_START_NO if name == 'STARTNO' else _START_YES).match(self.text)
            return [m.span()] if m else []
        if name not in self.found: self.found[name] = [m.span() for m in pattern(name).finditer(self.text)]
        return self.found[name]
    def denials(self, spans):
        "The words of denial in the clauses of these spans that are not part of them."
        homes = [c for c in self.clauses if any(c[0] < b and a < c[1] for a, b in spans)]
        return [n for n in self.nots if any(a <= n[0] < b for a, b in homes) and not any(a <= n[0] < b for a, b in spans)]

class Cue:
    "One way in which a text says an option; see the head of words/slots.txt."
    def __init__(self, text):
        self.guess, text = text[0] == '?', text.lstrip('?')
        self.scope, text = text[0] if text[0] in '~=' else '', text.lstrip('~=')
        words = text.split()
        self.ordered, self.absent = '>' in words, [w[1:] for w in words if w[0] == '!']
        self.bound = next((tuple(w.split(':')) for w in words if ':' in w), None)
        self.names = [w for w in words if w[0] not in '!>' and ':' not in w]
    def matches(self, text):
        "Lists of spans, one list per place where the cue holds."
        scopes = {'': text.sentences, '=': text.clauses, '~': [(0, len(text.text))]}[self.scope]
        for a, b in scopes:
            inside = lambda name: [s for s in text.find(name) if a <= s[0] < b]
            if any(inside(n) for n in self.absent): continue
            if self.bound: yield from bound(text, a, b, *self.bound)
            elif self.names and (found := [inside(n)[:5] for n in self.names]) and all(found):
                picks = [p for p in itertools.product(*found) if self._fits(p)]
                if picks: yield min(picks, key=lambda p: (len(text.denials(p)), max(s[1] for s in p) - min(s[0] for s in p)))
    def _fits(self, spans):
        if self.ordered: return all(x[1] <= y[0] for x, y in zip(spans, spans[1:]))
        return all(x[1] <= y[0] or y[1] <= x[0] for x, y in itertools.combinations(spans, 2))

_EACH = re.compile(r'respectively|각각|순서대로|차례로')

def bound(text, a, b, subject, value):
    "Places where `subject` is bound to `value`: neighbours in turn, comparisons, 'respectively'."
    pairs = concepts()[1]
    kinds = {subject: 'S', pairs[subject]: 'S', value: 'V', pairs[value]: 'V'}
    items = sorted(((*s, n) for n in kinds for s in text.find(n) if a <= s[0] < b), key=lambda o: (o[0], -o[1]))
    kept = []
    for o in items: # of two that overlap the longer one; of equal neighbours the first
        if kept and o[0] < kept[-1][1]:
            if o[1] - o[0] > kept[-1][1] - kept[-1][0]: kept[-1] = o
        elif not kept or kept[-1][2] != o[2]: kept.append(o)
    than = lambda o: text.text[o[1]:o[1] + 8].lstrip(' 들의학습률층레이어쪽')[:2] == '보다' or re.search(r'than (?:the |in |for )?(?:\w+ )?$', text.text[max(0, o[0] - 16):o[0]])
    said = []
    compared = [o for o in kept if kinds[o[2]] == 'S' and than(o)]
    if compared:
        rest = [o for o in kept if o not in compared]
        values = [o for o in rest if kinds[o[2]] == 'V']
        for o in compared[:1]:
            if values:
                v = min(values, key=lambda v: abs(v[0] - o[0]))
                said += [(pairs[o[2]], v[2], o, v), (o[2], pairs[v[2]], o, v)]
    else:
        row = ''.join(kinds[o[2]] for o in kept)
        if row in ('SSVV', 'VVSS') and _EACH.search(text.text[a:b]): order = [(kept[0], kept[2]), (kept[1], kept[3])]
        elif re.fullmatch('(SV)+S?|(VS)+V?', row): order = [(kept[i], kept[i + 1]) for i in range(0, len(row) - 1, 2)]
        else: order = [(x, y) for x, y in zip(kept, kept[1:]) if kinds[x[2]] != kinds[y[2]] and _home(text, x) == _home(text, y)]
        for x, y in order:
            s, v = (x, y) if kinds[x[2]] == 'S' else (y, x)
            said.append((s[2], v[2], s, v))
    mine = {v for s, v, *_ in said if s == subject}
    if mine == {value}: yield from ([x[:2], y[:2]] for s, v, x, y in said if s == subject)

def _home(text, o): return next((c for c in text.clauses if c[0] <= o[0] < c[1]), None)

def read(text, slots):
    "What `text` says about `slots`."
    open_ = {n: None for s in slots for n in s.names}
    raw = str(text)
    if len(raw) > READ: return Reading(open_, why='long')
    norm = normalise(raw)
    if why := unread(norm): return Reading(open_, why=why)
    t, quotes, used, doubt = _Text(norm), {}, [], False
    spans = []
    for slot in slots:
        said, denied = {}, False
        for option in slot.options:
            for cue in option.cues:
                for m in cue.matches(t):
                    if t.denials(m): denied = True
                    else:
                        place = min(s[0] for s in m)
                        if option.key not in said or said[option.key][1] and not cue.guess: said[option.key] = (place, cue.guess)
                        used += m
        keys = sorted(said, key=lambda k: said[k][0])
        right = [k for k in keys if k in slot.right]
        firm = [k for k in keys if not said[k][1]]
        if len(slot.names) == 1:
            keys = keys if len(keys) < 2 else firm if len(firm) == 1 else []
            if not keys and said: doubt = True
        doubt |= denied or any(said[k][1] for k in keys)
        for name, key in zip(slot.names, keys):
            open_[name] = key
            clause = next((c for c in t.clauses if c[0] <= said[key][0] < c[1]), (0, len(norm)))
            quotes[name] = norm[slice(*clause)].strip(' ,.')
        if len(keys) > len(slot.names): doubt = True
    stray = [n for n in t.nots if not any(a <= n[0] < b for a, b in used)]
    plain = not doubt and not stray and _covered(t, used) and not _jumbled(norm)
    return Reading(open_, plain, quotes)

def unread(norm):
    letters = sum(c.isalpha() for c in norm)
    ours = sum(c.isascii() or '가' <= c <= '힣' or 'ㄱ' <= c <= 'ㅣ' or '\u0370' <= c <= '\u03ff' for c in norm if c.isalpha())
    if letters and ours < .9*letters or len(_OTHER.findall(norm)) >= 3 and len(_OTHER.findall(norm)) > len(_ENGLISH.findall(norm)): return 'language'
    words = norm.split()
    if any(len(w) > 60 for w in words): return 'jumble'
    parts = [p for p in re.split(r'[,\n;]', norm) if p.strip()]
    if len(parts) > 3 and len(words) <= 1.4*len(parts): return 'list'
    if len(words) >= 5 and _jumbled(norm): return 'list'
    return ''

_OTHER = re.compile(unwrap(r'''(?<!\w)(?:der|die|das|und|ist|wird|von|zuerst|danach|nicht|ein|eine|den|dem|mit|für|le|la|les|
    des|est|et|une|dans|pour|que|el|los|las|es|y|una|por|para|con|o|a|é|das|dos|da|do|são|uma|não|il|che|di|e|per|non|som|och|är|het|een|van)(?!\w)'''))
_ENGLISH = re.compile(unwrap(r'''(?<!\w)(?:the|is|are|it|its|of|to|in|on|for|with|by|because|so|and|or|not|no|we|you|that|this|they|have|has|can|do|does|when|as|but|if|a|an|be|one|from)(?!\w)'''))
_JUMBLE = re.compile(unwrap(rf'''
    (?<![a-z])(?:the|an?)\s+(?:the|an?|in|of|is|are|to|than|and|or|with|for|by|on|at|it|has|down|down the)(?![a-z])|
    (?<![a-z])of\s+(?:of|is|are|than|and|or|with|has)(?![a-z])|(?<![a-z])(?:the|an|of|than|and|for|it)\s*$|
    (?<![a-z])(?:is|are|has)\s+(?:than|is|are|has|of|and)(?![a-z])|(?<![a-z])for [a-z]+ and [a-z]+ (?:late|learning) [a-z]+|than condition|the it |all first the|
    (?<![{_H}])(?:에서|더|및|또는|같은|의|을|를|은|는|몇)(?=\s+[{_H}]+\s+[{_H}]+$|$)'''))
_VERBS = re.compile(unwrap(rf'''
    (?<![a-z])(?:is|are|was|be|do|does|has|have|can|will|should|would|you|we|it|they|i|[a-z]{{3,}}s|[a-z]{{2,}}ed|by|so|if|when|to|not|
    no|because|use|then|with|without|one|per|first)(?![a-z])|n't|[=+/:>()?]|
    (?:다|요|음|함|됨|임|고|며|면|서|니까|해|는|은|을|를|이|가|로|에|게|기|때|지|차이|위해)(?=[\s,.;~!)]|$)'''))

def _jumbled(norm):
    words = norm.split()
    if len(words) < 5: return False
    return bool(_JUMBLE.search(norm)) or len(_VERBS.findall(norm)) < len(words)/9

_STOP = frozenset(unwrap('''a an the is are was were be been being it its it's of to in on at by for with from into as than that this these
 those they them we you i one ones so because since if when while where which who what then there and or but also too only just can could may might will would
 should must do does did has have had get gets got give gives given make makes made use uses used using all each every both any some more most
 very much many other same such own up out over about after before per not no e.g i.e eg ie etc how why my your our their let lets take takes goes go
 model models picture pictures photo photos image images data value values number numbers way ways means mean called call''').split()) if False else frozenset('''a an the is are was were be been being it its it's of to in on at by for with from into as than that this these
 those they them we you i one ones so because since if when while where which who what then there and or but also too only just can could may might will would
 should must do does did has have had get gets got give gives given make makes made use uses used using all each every both any some more most
 very much many other same such own up out over about after before per not no eg ie etc how why my your our their let lets take takes goes go
 model models picture pictures photo photos image images data value values number numbers way ways means mean called call need needs keep keeps
 train trains trained training learn learns learning rate rates loss class classes label labels layer layers number'''.split())

def _covered(t, used):
    "Is most of the text read? What a reader does not know may turn a sentence round."
    spans = [s for n in concepts()[0] for s in t.find(n)] + t.nots
    words = [m for m in re.finditer(rf'[a-z]{{2,}}|[{_H}]+', t.text)]
    known = lambda m: m[0] in _STOP or any(a <= m.start() < b or a < m.end() <= b for a, b in spans)
    unknown = [m for m in words if not known(m)]
    return len(words) <= 60 and len(unknown) <= .25*len(words)
