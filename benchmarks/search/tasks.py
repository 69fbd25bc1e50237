"""Tasks made by rules, for a benchmark of adapter embeddings: pairs of prompt and response from a seed (Apache-2.0).

    pairs("roman", 40, seed=1)      forty different pairs, the same ones every time

A task has three phrasings of its prompt, so that one can ask whether an embedding tells tasks or phrasings apart. Its
family is what it is about; tasks of a family share a kind of content and not the answer's rule.
"""

import json
import random
from calendar import day_name
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from random import Random
from zlib import crc32

NAMES = (  # of people
    "Ada Ben Chloe David Emma Felix Grace Hugo Iris Jonas Kate Liam Mona Nora Oscar Paula Quinn Ruth Sam Tara"
).split()
THINGS = ("apples pencils books stamps marbles shells tickets cards lemons candles buttons mugs coins ribbons").split()
WORDS = (
    "anchor basket candle desert engine forest garden hammer island jacket kettle ladder magnet needle orange pillow "
    "quartz ribbon saddle timber urchin velvet walnut yellow zipper bridge copper dragon feather glacier harbor jungle "
    "lantern meadow nickel oyster pepper rocket silver tunnel"
).split()
KINDS = {
    "fruit": "apple banana cherry grape lemon mango peach pear plum".split(),
    "animals": "badger camel donkey eagle falcon goat heron otter zebra".split(),
    "tools": "chisel drill hammer pliers saw spanner wrench".split(),
    "vehicles": "bicycle bus ferry lorry plane tram truck van".split(),
    "instruments": "cello clarinet drum flute guitar harp oboe piano violin".split(),
}
CAPITALS = dict(
    France="Paris", Japan="Tokyo", Egypt="Cairo", Peru="Lima", Kenya="Nairobi", Norway="Oslo", Spain="Madrid",
    Italy="Rome", Greece="Athens", Canada="Ottawa", Cuba="Havana", Iran="Tehran", Iraq="Baghdad", Austria="Vienna",
    Poland="Warsaw", Portugal="Lisbon", Turkey="Ankara", Ireland="Dublin", Finland="Helsinki", Sweden="Stockholm",
    Denmark="Copenhagen", Hungary="Budapest", Chile="Santiago", China="Beijing", Thailand="Bangkok", Vietnam="Hanoi",
    Nepal="Kathmandu", Ghana="Accra", Senegal="Dakar", Morocco="Rabat", Jordan="Amman", Lebanon="Beirut",
    Syria="Damascus", Ukraine="Kyiv", Belgium="Brussels", Germany="Berlin", Serbia="Belgrade", Romania="Bucharest",
    Bulgaria="Sofia", Croatia="Zagreb", Mongolia="Ulaanbaatar", Uruguay="Montevideo", Ecuador="Quito",
)  # fmt: skip
SYMBOLS = dict(
    hydrogen="H", helium="He", lithium="Li", carbon="C", nitrogen="N", oxygen="O", fluorine="F", neon="Ne",
    sodium="Na", magnesium="Mg", aluminium="Al", silicon="Si", phosphorus="P", sulfur="S", chlorine="Cl", argon="Ar",
    potassium="K", calcium="Ca", titanium="Ti", chromium="Cr", manganese="Mn", iron="Fe", cobalt="Co", nickel="Ni",
    copper="Cu", zinc="Zn", arsenic="As", bromine="Br", silver="Ag", tin="Sn", iodine="I", xenon="Xe", barium="Ba",
    tungsten="W", platinum="Pt", gold="Au", mercury="Hg", lead="Pb", uranium="U", radium="Ra",
)  # fmt: skip
MORSE = dict(zip(
    "abcdefghijklmnopqrstuvwxyz",
    (".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- "
     "-. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --..").split(),
    strict=True,
))  # fmt: skip
SPELLED = (
    "Alfa Bravo Charlie Delta Echo Foxtrot Golf Hotel India Juliett Kilo Lima Mike November Oscar Papa Quebec Romeo "
    "Sierra Tango Uniform Victor Whiskey X-ray Yankee Zulu"
).split()


@dataclass(frozen=True)
class Task:
    """How to make a pair: three phrasings with {fields}, and a function that draws the fields and the response."""

    family: str
    phrasings: tuple[str, str, str]
    draw: Callable[[Random], tuple[dict, str]]


TASKS: dict[str, Task] = {}


def task(family: str, *phrasings: str):
    """Makes the function a task of its own name."""

    def keep(draw: Callable[[Random], tuple[dict, str]]):
        TASKS[draw.__name__] = Task(family, phrasings, draw)
        return draw

    return keep


def pairs(name: str, count: int, seed: int | str, phrasing: int | None = None, held_out: bool = False) -> list[dict]:
    """So many pairs of a task, no two of one prompt, in one of its phrasings (None: each in any).

    Fewer if it has no more. A quarter of all contents is `held_out`, in whatever phrasing: the same for every seed.
    """
    chosen, rng, found = TASKS[name], random.Random(f"{name} {seed}"), {}
    for _ in range(100 * count):
        fields, response = chosen.draw(rng)
        text = chosen.phrasings[rng.randrange(3) if phrasing is None else phrasing]
        content = chosen.phrasings[2].format(**fields)
        if (crc32(content.encode()) % 4 == 0) == held_out:
            found.setdefault(text.format(**fields), response)
        if len(found) == count:
            break
    return [{"prompt": prompt, "response": response} for prompt, response in found.items()]


# --- arithmetic ---


@task("arithmetic", "What is {a} + {b}?", "Add {a} and {b}.", "Compute the sum {a} + {b} step by step.")
def addition(r: Random):
    a, b = r.randint(100, 999), r.randint(100, 999)
    tens, ones = b // 10 * 10, b % 10
    return dict(a=a, b=b), f"{a} + {tens} = {a + tens}, and {a + tens} + {ones} = {a + b}. The sum is {a + b}."


@task("arithmetic", "What is {a} times {b}?", "Multiply {a} by {b}.", "Work out {a} * {b}.")
def multiplication(r: Random):
    a, b = r.randint(12, 99), r.randint(3, 9)
    tens, ones = a // 10 * 10, a % 10
    return dict(a=a, b=b), f"{tens} * {b} = {tens * b} and {ones} * {b} = {ones * b}, which makes {a * b}."


@task("arithmetic", "Evaluate {e}.", "What is the value of {e}?", "Simplify the expression {e} to one number.")
def expressions(r: Random):
    a, b, c, d = (r.randint(2, 12) for _ in range(4))
    inner, product = a + b, (a + b) * c
    return dict(
        e=f"({a} + {b}) * {c} - {d}"
    ), f"({a} + {b}) = {inner}; {inner} * {c} = {product}; minus {d} is {product - d}."


@task(
    "arithmetic",
    "What is the remainder of {a} divided by {b}?",
    "Compute {a} mod {b}.",
    "Divide {a} by {b}: what is left over?",
)
def remainders(r: Random):
    a, b = r.randint(30, 400), r.randint(3, 13)
    return dict(a=a, b=b), f"{b} goes {a // b} times into {a}: {b} * {a // b} = {a // b * b}. What is left is {a % b}."


@task(
    "arithmetic",
    "Add the fractions {a}/{b} and {c}/{d}.",
    "What is {a}/{b} + {c}/{d}?",
    "Compute {a}/{b} + {c}/{d} over a common denominator.",
)
def fractions(r: Random):
    b, d = r.sample(range(2, 12), 2)
    a, c = r.randint(1, b - 1), r.randint(1, d - 1)
    top = a * d + c * b
    return dict(a=a, b=b, c=c, d=d), f"Over {b * d}: {a * d}/{b * d} + {c * b}/{b * d} = {top}/{b * d}."


@task("arithmetic", "Is {a} a prime number?", "Tell whether {a} is prime.", "Check {a} for divisors: is it prime?")
def primes(r: Random):
    a = r.randint(11, 400)
    least = next((d for d in range(2, a) if a % d == 0), None)
    return dict(
        a=a
    ), f"No: {a} = {least} * {a // least}." if least else f"Yes: no number from 2 to {int(a**0.5)} divides {a}."


# --- everyday quantities ---


@task(
    "quantities", "{n} buys {k} {t} at {p} dollars each and pays with {m} dollars. What is the change?",
    "A shop sells {t} for {p} dollars apiece. {n} takes {k} and hands over {m} dollars. How much comes back?",
    "How much change does {n} get from {m} dollars for {k} {t} that cost {p} dollars each?",
)  # fmt: skip
def shopping(r: Random):
    k, p = r.randint(2, 9), r.randint(2, 9)
    m = (k * p // 10 + r.randint(1, 3)) * 10
    fields = dict(n=r.choice(NAMES), t=r.choice(THINGS), k=k, p=p, m=m)
    return fields, f"{k} * {p} = {k * p} dollars. {m} - {k * p} = {m - k * p}. The change is {m - k * p} dollars."


@task(
    "quantities", "A train goes {v} km an hour for {h} hours. How far does it get?",
    "{n} drives for {h} hours at {v} km/h. What distance is that?", "How many kilometres are {h} hours at {v} km/h?",
)  # fmt: skip
def journeys(r: Random):
    v, h = r.randint(20, 120), r.randint(2, 9)
    return dict(v=v, h=h, n=r.choice(NAMES)), f"Distance is speed times time: {v} km/h * {h} h = {v * h} km."


@task(
    "quantities",
    "What date is {k} days after {d}?",
    "Start at {d} and go on {k} days. Which date is it?",
    "Add {k} days to {d}.",
)
def dates(r: Random):
    start, k = date(2024, 1, 1) + timedelta(r.randrange(1500)), r.randint(3, 60)
    return dict(d=start.isoformat(), k=k), f"{start.isoformat()} plus {k} days is {(start + timedelta(k)).isoformat()}."


@task(
    "quantities",
    "If today is {d}, which weekday is it in {k} days?",
    "It is {d}. Name the weekday {k} days from now.",
    "Which day of the week comes {k} days after a {d}?",
)
def weekdays(r: Random):
    d, k = r.randrange(7), r.randint(8, 90)
    return dict(
        d=day_name[d], k=k
    ), f"{k} days are {k // 7} weeks and {k % 7} days, so it is a {day_name[(d + k) % 7]}."


@task("quantities", "Convert {a} {u} to {w}.", "How many {w} are {a} {u}?", "Express {a} {u} in {w}.")
def units(r: Random):
    u, w, factor = r.choice(
        [
            ("metres", "centimetres", 100),
            ("kilometres", "metres", 1000),
            ("hours", "minutes", 60),
            ("kilograms", "grams", 1000),
            ("days", "hours", 24),
            ("weeks", "days", 7),
            ("feet", "inches", 12),
            ("litres", "millilitres", 1000),
            ("minutes", "seconds", 60),
            ("dozens", "pieces", 12),
        ]
    )
    a = r.randint(2, 99)
    return dict(a=a, u=u, w=w), f"One of the {u} is {factor} {w}, so {a} {u} are {a} * {factor} = {a * factor} {w}."


@task(
    "quantities",
    "It is {a}. What time is it in {k} minutes?",
    "A film of {k} minutes begins at {a}. When does it end?",
    "Add {k} minutes to {a} o'clock time.",
)
def clock(r: Random):
    start, k = r.randrange(0, 1200, 5), r.randrange(15, 200, 5)
    then = start + k
    return dict(
        a=f"{start // 60:02d}:{start % 60:02d}", k=k
    ), f"{k} minutes later it is {then // 60 % 24:02d}:{then % 60:02d}."


# --- lists ---


def _listed(items) -> str:
    return ", ".join(map(str, items))


@task(
    "lists",
    "Sort these numbers in ascending order: {l}",
    "Put in order from small to large: {l}",
    "Ascending order, please: {l}",
)
def sort_numbers(r: Random):
    items = r.sample(range(1, 200), r.randint(4, 7))
    return dict(l=_listed(items)), _listed(sorted(items))


@task("lists", "Sort these words alphabetically: {l}", "Put the words in alphabetical order: {l}", "Alphabetize: {l}")
def sort_words(r: Random):
    items = r.sample(WORDS, r.randint(3, 6))
    return dict(l=_listed(items)), _listed(sorted(items))


@task(
    "lists",
    'How often does the letter {c} occur in "{w}"?',
    "Count the letter {c} in: {w}",
    'In the words "{w}", how many times is there a {c}?',
)
def count_letters(r: Random):
    w = " ".join(r.sample(WORDS, 3))
    c = r.choice("aeirnot")
    where = [each for each in w.split() if c in each]
    return dict(c=c, w=w), f"The letter {c} occurs {w.count(c)} times" + (
        f", in {' and '.join(where)}." if where else "."
    )


@task(
    "lists",
    "How many of these are {k}: {l}?",
    "Count the {k} in this list: {l}",
    "Here are some words: {l}. How many {k} are among them?",
)
def count_kinds(r: Random):
    k, other = r.sample([*KINDS], 2)
    mine, theirs = r.sample(KINDS[k], r.randint(1, 4)), r.sample(KINDS[other], r.randint(1, 4))
    items = mine + theirs
    r.shuffle(items)
    return dict(
        k=k, l=_listed(items)
    ), f"The {k} are {_listed(each for each in items if each in mine)}: {len(mine)} in all."


@task(
    "lists", "Reverse this list: {l}", "Write the list from back to front: {l}", "Give these in the opposite order: {l}"
)
def reverse_lists(r: Random):
    items = r.sample(WORDS, r.randint(3, 6))
    return dict(l=_listed(items)), _listed(items[::-1])


@task(
    "lists",
    "Which number is the largest, and which the smallest: {l}?",
    "Find maximum and minimum of {l}.",
    "Extremes of this list, please: {l}",
)
def extremes(r: Random):
    items = r.sample(range(1, 500), r.randint(5, 8))
    return dict(
        l=_listed(items)
    ), f"Largest: {max(items)}. Smallest: {min(items)}. They are {max(items) - min(items)} apart."


@task(
    "lists", "Remove the duplicates, keep the order: {l}", "Each word once only: {l}", "Drop repeated entries of {l}."
)
def unique(r: Random):
    items = r.choices(r.sample(WORDS, 4), k=r.randint(5, 8))
    return dict(l=_listed(items)), _listed(dict.fromkeys(items))


# --- formats ---


def _record(r: Random) -> dict:
    return dict(name=r.choice(NAMES), age=r.randint(18, 80), city=r.choice([*CAPITALS.values()]))


@task(
    "formats",
    "Write as JSON: {name} is {age} years old and lives in {city}.",
    "Turn into a JSON object: {name}, aged {age}, from {city}.",
    "JSON for this person: {name}, {age}, {city}",
)
def to_json(r: Random):
    fields = _record(r)
    return fields, json.dumps(fields)


@task(
    "formats",
    "Write as YAML: {name} is {age} years old and lives in {city}.",
    "Turn into YAML: {name}, aged {age}, from {city}.",
    "YAML for this person: {name}, {age}, {city}",
)
def to_yaml(r: Random):
    fields = _record(r)
    return fields, "\n".join(f"{key}: {value}" for key, value in fields.items())


@task(
    "formats",
    "Make a Markdown table of items and counts: {l}",
    "Show as a Markdown table: {l}",
    "Markdown table, please: {l}",
)
def to_table(r: Random):
    rows = [(thing, r.randint(1, 60)) for thing in r.sample(THINGS, r.randint(2, 3))]
    body = "".join(f"\n| {thing} | {count} |" for thing, count in rows)
    return dict(l=_listed(f"{count} {thing}" for thing, count in rows)), f"| item | count |\n|---|---|{body}"


@task(
    "formats",
    "Write an SQL query: {c} of all {t} whose {w} is over {v}.",
    "SQL for: select {c} from {t} where {w} exceeds {v}",
    "Which SQL statement lists the {c} of {t} with {w} greater than {v}?",
)
def to_sql(r: Random):
    c, w = r.sample(["name", "price", "age", "weight", "city", "size", "rating", "year"], 2)
    t, v = r.choice("customers orders products employees books films cars houses".split()), r.randint(2, 900)
    return dict(c=c, t=t, w=w, v=v), f"SELECT {c} FROM {t} WHERE {w} > {v};"


@task("formats", "Wrap in HTML as a list: {l}", "Make an HTML list of {l}.", "HTML bullet points for: {l}")
def to_html(r: Random):
    items = r.sample(WORDS, r.randint(2, 4))
    return dict(l=_listed(items)), "<ul>" + "".join(f"<li>{each}</li>" for each in items) + "</ul>"


@task(
    "formats",
    "Which city does this person live in? {j}",
    "Read the city from {j}",
    "Given the record {j}, name the city.",
)
def from_json(r: Random):
    fields = _record(r)
    return dict(j=json.dumps(fields)), f"{fields['name']} lives in {fields['city']}."


# --- code ---

_STEPS = {
    "doubles it": "2 * x", "squares it": "x * x", "adds {k} to it": "x + {k}", "subtracts {k} from it": "x - {k}",
    "multiplies it by {k}": "x * {k}", "takes the remainder by {k}": "x % {k}", "halves it, rounding down": "x // 2",
}  # fmt: skip


@task(
    "code",
    "Write a Python function {f} that takes a number and {d}.",
    "Python: define {f}(x), which {d}.",
    "I need a function {f} in Python. It {d}.",
)
def write_python(r: Random):
    d, e = r.choice([*_STEPS.items()])
    f, k = r.choice(["change", "step", "update", "transform", "apply", "convert"]), r.randint(2, 20)
    return dict(f=f, d=d.format(k=k) + " (the number is x)"), f"def {f}(x):\n    return {e.format(k=k)}"


@task(
    "code",
    "What does this Python code print?\n{p}",
    "Output of the following program:\n{p}",
    "Run in your head:\n{p}\nWhat appears?",
)
def python_output(r: Random):
    a, b, n = r.randint(0, 9), r.randint(1, 6), r.randint(2, 5)
    return dict(
        p=f"x = {a}\nfor i in range({n}):\n    x = x + {b}\nprint(x)"
    ), f"x starts at {a} and grows by {b} {n} times: {a + b * n}"


@task(
    "code",
    "Rewrite as a list comprehension:\n{p}",
    "Shorten this loop to a comprehension:\n{p}",
    "Make one line of it:\n{p}",
)
def comprehension(r: Random):
    out, src = r.sample(["result", "values", "items", "numbers", "data", "found", "rows"], 2)
    e = r.choice([*_STEPS.values()]).format(k=r.randint(2, 20))
    return dict(p=f"{out} = []\nfor x in {src}:\n    {out}.append({e})"), f"{out} = [{e} for x in {src}]"


@task(
    "code",
    "Translate to JavaScript:\n{p}",
    "The same in JavaScript, please:\n{p}",
    "Convert this Python function to JavaScript:\n{p}",
)
def to_javascript(r: Random):
    f, e = (
        r.choice(["change", "step", "update", "transform", "apply", "convert"]),
        r.choice(["2 * x", "x * x", "x + {k}", "x - {k}", "x * {k}", "x % {k}"]).format(k=r.randint(2, 40)),
    )
    return dict(p=f"def {f}(x):\n    return {e}"), f"function {f}(x) {{\n  return {e};\n}}"


@task("code", "Explain this Python expression: {e}", "What does {e} do, in words?", "In plain words: {e}")
def explain_python(r: Random):
    words, e = r.choice(
        [
            ("the sum of the first {k} elements of {s}", "sum({s}[:{k}])"),
            ("the {k} largest values of {s}", "sorted({s})[-{k}:]"),
            ("every {k}th element of {s}", "{s}[::{k}]"),
            ("how many elements of {s} exceed {k}", "sum(x > {k} for x in {s})"),
            ("{s} without its first {k} elements", "{s}[{k}:]"),
            ("the elements of {s} that {k} divides", "[x for x in {s} if x % {k} == 0]"),
        ]
    )
    how = dict(s=r.choice(["values", "items", "numbers", "data", "rows", "scores"]), k=r.randint(2, 30))
    return dict(e=e.format(**how)), f"It gives {words.format(**how)}."


@task("code", "Which shell command {d}?", "Shell: {d}. How?", "Give the command line that {d}.")
def shell(r: Random):
    d, c = r.choice(
        [
            ("lists the files in {f} by size", "ls -lS {f}"),
            ("counts the lines of {f}.txt", "wc -l {f}.txt"),
            ("shows the first {k} lines of {f}.txt", "head -n {k} {f}.txt"),
            ("makes a folder {f}", "mkdir {f}"),
            ("shows the last {k} lines of {f}.txt", "tail -n {k} {f}.txt"),
            ("finds the word {f} in all files here", "grep -r {f} ."),
            ("renames {f}.txt to {f}-{k}.txt", "mv {f}.txt {f}-{k}.txt"),
            ("packs the folder {f}", "tar czf {f}.tar.gz {f}"),
        ]
    )
    how = dict(f=r.choice(WORDS), k=r.randint(2, 50))
    return dict(d=d.format(**how)), c.format(**how)


# --- notation ---


def _roman(n: int) -> str:
    signs = zip((100, 90, 50, 40, 10, 9, 5, 4, 1), "C XC L XL X IX V IV I".split(), strict=True)
    out = ""
    for value, sign in signs:
        out, n = out + n // value * sign, n % value
    return out


@task("notation", "Write {a} in Roman numerals.", "Roman numeral for {a}?", "How did the Romans write {a}?")
def roman(r: Random):
    a = r.randint(4, 399)
    return dict(a=a), _roman(a)


@task("notation", "Write {a} in binary.", "Binary form of {a}?", "Convert the decimal number {a} to base two.")
def binary(r: Random):
    a = r.randint(5, 500)
    return dict(a=a), f"{a:b}"


@task("notation", 'Write "{w}" in Morse code.', "Morse code for {w}?", "Encode {w} in dots and dashes.")
def morse(r: Random):
    w = r.choice(WORDS + THINGS + sum(KINDS.values(), []))
    return dict(w=w), " ".join(MORSE[c] for c in w)


@task("notation", 'Spell "{w}" in the NATO alphabet.', "How would a pilot spell {w}?", "Spell {w} with code words.")
def spelling(r: Random):
    w = r.choice(WORDS + THINGS + sum(KINDS.values(), []))
    return dict(w=w), " ".join(SPELLED[ord(c) - 97] for c in w)


@task("notation", "Write {e} in postfix notation.", "Reverse Polish notation of {e}?", "Convert {e} to RPN.")
def postfix(r: Random):
    a, b, c = (r.randint(1, 20) for _ in range(3))
    p, q = r.choice("+-*"), r.choice("+-*")
    if r.random() < 0.5:
        return dict(e=f"({a} {p} {b}) {q} {c}"), f"{a} {b} {p} {c} {q}"
    return dict(e=f"{a} {p} ({b} {q} {c})"), f"{a} {b} {c} {q} {p}"


@task("notation", "Write in LaTeX: {d}", "LaTeX for {d}?", "Typeset {d} with LaTeX.")
def latex(r: Random):
    d, t = r.choice(
        [
            ("{a} over {b}", r"\frac{{{a}}}{{{b}}}"),
            ("the square root of {a}", r"\sqrt{{{a}}}"),
            ("x to the power {a}", "x^{{{a}}}"),
            ("the sum of i from {a} to {b}", r"\sum_{{i={a}}}^{{{b}}} i"),
            ("x with index {a}, times {b}", r"{b} x_{{{a}}}"),
            ("the integral of x from {a} to {b}", r"\int_{{{a}}}^{{{b}}} x \, dx"),
        ]
    )
    how = dict(a=r.randint(2, 30), b=r.randint(31, 60))
    return dict(d=d.format(**how)), f"${t.format(**how)}$"


# --- facts and choices ---


@task("facts", "What is the capital of {c}?", "Name the capital city of {c}.", "{c}: which city is the capital?")
def capitals(r: Random):
    c, city = r.choice([*CAPITALS.items()])
    return dict(c=c), f"The capital of {c} is {city}."


@task(
    "facts",
    "What is the chemical symbol of {e}?",
    "Chemical symbol for {e}?",
    "Which letters stand for {e} in the periodic table?",
)
def symbols(r: Random):
    e, s = r.choice([*SYMBOLS.items()])
    return dict(e=e), f"The symbol of {e} is {s}."


@task(
    "facts",
    "Which of these does not belong: {l}?",
    "Find the odd one out: {l}",
    "One of these is of another kind: {l}. Which?",
)
def odd_one_out(r: Random):
    k, other = r.sample([*KINDS], 2)
    odd = r.choice(KINDS[other])
    items = [*r.sample(KINDS[k], 3), odd]
    r.shuffle(items)
    return dict(l=_listed(items)), f"{odd}: the others are {k}."


@task(
    "facts",
    "True or false: {w} is one of the {k}.",
    "Does {w} belong to the {k}? Say true or false.",
    "{w} counts among the {k}. True or false?",
)
def true_or_false(r: Random):
    k, other = r.sample([*KINDS], 2)
    right = r.random() < 0.5
    w = r.choice(KINDS[k if right else other])
    return dict(w=w, k=k), "True." if right else "False."


@task(
    "facts",
    "Choose the capital of {c}: {l}",
    "{c}'s capital? Options: {l}",
    "Pick the right letter. Capital of {c}: {l}",
)
def multiple_choice(r: Random):
    c, city = r.choice([*CAPITALS.items()])
    options = [city, *r.sample([each for each in CAPITALS.values() if each != city], 3)]
    r.shuffle(options)
    return dict(
        c=c, l=" ".join(f"({x}) {each}" for x, each in zip("ABCD", options, strict=True))
    ), f"({'ABCD'[options.index(city)]})"


@task(
    "facts",
    "Which country has the capital {c}?",
    "{c} is the capital of which country?",
    "Of which country is {c} the capital?",
)
def countries(r: Random):
    country, city = r.choice([*CAPITALS.items()])
    return dict(c=city), f"{city} is the capital of {country}."


# --- style ---

_GOOD = "wonderful excellent delightful superb charming brilliant lovely outstanding".split()
_BAD = "awful dreadful boring terrible disappointing dull poor miserable".split()
_SUBJECTS = "film hotel book concert restaurant phone lecture play museum train".split()


@task("style", 'Is this review positive or negative? "{t}"', "Sentiment of: {t}", '"{t}" How does the writer feel?')
def sentiment(r: Random):
    good = r.random() < 0.5
    words = r.sample(_GOOD if good else _BAD, 2)
    t = r.choice(["The {s} was {a} and {b}.", "What a {a} {s}, simply {b}!", "I found the {s} {a}; the staff was {b}."])
    return dict(t=t.format(s=r.choice(_SUBJECTS), a=words[0], b=words[1])), "Positive." if good else "Negative."


@task("style", "Say it politely: {t}", "Make this sentence polite: {t}", "A courteous version, please: {t}")
def polite(r: Random):
    v, t = r.choice("bring send show lend give hand".split()), r.choice(THINGS)
    n = r.choice(NAMES)
    return dict(t=f"{n}, {v} me the {t}!"), f"{n}, would you be so kind as to {v} me the {t}, please?"


@task("style", "Speak like a pirate: {t}", "Turn into pirate talk: {t}", "How would a pirate put it? {t}")
def pirate(r: Random):
    n, t, k = r.choice(NAMES), r.choice(THINGS), r.randint(2, 40)
    return dict(t=f"{n} has {k} {t}."), f"Arr, that scurvy dog {n} be havin' {k} {t}, matey!"


@task("style", "Put into the passive voice: {t}", "Passive form of: {t}", "Rewrite in the passive: {t}")
def passive(r: Random):
    v, p = r.choice(
        [
            ("paints", "painted"),
            ("breaks", "broken"),
            ("sells", "sold"),
            ("finds", "found"),
            ("counts", "counted"),
            ("hides", "hidden"),
        ]
    )
    n, t = r.choice(NAMES), r.choice(THINGS)
    return dict(t=f"{n} {v} the {t}."), f"The {t} are {p} by {n}."


@task("style", "Put into the past tense: {t}", "Past tense of: {t}", "Tell it as if it were yesterday: {t}")
def past_tense(r: Random):
    v, p = r.choice(
        [
            ("buys", "bought"),
            ("eats", "ate"),
            ("brings", "brought"),
            ("sells", "sold"),
            ("takes", "took"),
            ("hides", "hid"),
            ("loses", "lost"),
        ]
    )
    n, t, k = r.choice(NAMES), r.choice(THINGS), r.randint(2, 30)
    return dict(t=f"{n} {v} {k} {t}."), f"Yesterday {n} {p} {k} {t}."


@task("style", "Write in title case: {t}", "Make a headline of: {t}", "Capitalize as a title: {t}")
def title_case(r: Random):
    t = f"the {r.choice(WORDS)} and the {r.choice(WORDS)} of {r.choice(NAMES).lower()}'s {r.choice(WORDS)}"
    return dict(t=t), " ".join(
        word if word in ("and", "the", "of") and i else word.capitalize() for i, word in enumerate(t.split())
    )
