"""Write math.json, code.json and commonsense.json next to this file.

    python data/prompts/make_prompts.py

Everything is deterministic: the seed is fixed, so running the script twice gives the same bytes.  code.json is read
from the source files of the Python that runs the script (never imported); the shipped file came from CPython 3.11,
and another version gives slightly different functions.
"""

import ast
import inspect
import json
import random
import sysconfig
import textwrap
from fractions import Fraction
from itertools import combinations
from pathlib import Path

SEED = 20240611
PER_TEMPLATE = 20  # problems made from one math template
PER_MODULE = 12  # functions taken from one source file
CODE_LIMIT = 620  # functions kept in all
HERE = Path(__file__).resolve().parent


def pair(prompt, response):
    """One training pair."""
    return {"prompt": prompt.strip(), "response": response.strip()}


def unique(pairs):
    """Drop pairs whose prompt was seen before or that are too long."""
    seen, kept = set(), []
    for p in pairs:
        short = len(p["prompt"]) <= 500 and len(p["prompt"]) + len(p["response"]) <= 900
        if short and p["prompt"] not in seen:
            seen.add(p["prompt"])
            kept.append(p)
    return kept


def cap(text):
    """Upper-case the first letter only."""
    return text[:1].upper() + text[1:]


# ---------------------------------------------------------------- math

PEOPLE = ["Maya", "Tom", "Aisha", "Luis", "Nora", "Ben", "Priya", "Omar", "Julia", "Kofi", "Hana", "Peter", "Sofia",
          "Ivan", "Leila", "Marco", "Grace", "Daniel", "Yuki", "Emma", "Samuel", "Zara", "Felix", "Ruth"]
GOODS = ["notebooks", "pens", "apples", "mugs", "posters", "candles", "plants", "puzzles", "brushes", "bottles",
         "magnets", "erasers", "sandwiches", "muffins", "postcards", "toy cars", "lemons", "scarves"]


def num(x):
    """A tidy number: an integer, or a short decimal."""
    x = Fraction(x)
    return str(x.numerator) if x.denominator == 1 else f"{float(x):.4f}".rstrip("0")


def cash(cents):
    """Cents as dollars without the sign: 350 -> 3.50, 300 -> 3."""
    return str(cents // 100) if cents % 100 == 0 else f"{cents // 100}.{cents % 100:02d}"


def m_shopping(r):
    (a, b), w = r.sample(GOODS, 2), r.choice(PEOPLE)
    i, j, p, q = r.randint(2, 9), r.randint(2, 9), r.randint(2, 12), r.randint(2, 12)
    ask = r.choice([
        f"{w} buys {i} {a} for ${p} each and {j} {b} for ${q} each. How many dollars does {w} spend in total?",
        (f"At the market, {a} cost ${p} each and {b} cost ${q} each. What is the total cost in dollars of {i} {a} "
        f"and {j} {b}?")])
    return ask, [f"The {a} cost {i} * {p} = ${i * p}.", f"The {b} cost {j} * {q} = ${j * q}.",
                 f"Together that is {i * p} + {j * q} = ${i * p + j * q}."], i * p + j * q


def m_change(r):
    w, g, k, p = r.choice(PEOPLE), r.choice(GOODS), r.randint(2, 6), r.randint(5, 60) * 5
    note = next(x for x in (500, 1000, 2000, 5000) if x > k * p)
    ask = r.choice([
        f"{w} pays for {k} {g} at ${cash(p)} each with a ${cash(note)} bill. How much change does {w} get?",
        (f"One of the {g} in a shop costs ${cash(p)}. {w} takes {k} of them and hands over ${cash(note)}. "
        "How many dollars come back as change?")])
    return ask, [f"The cost is {k} * {cash(p)} = ${cash(k * p)}.",
                 f"The change is {cash(note)} - {cash(k * p)} = ${cash(note - k * p)}."], cash(note - k * p)


def m_discount(r):
    p, d = r.randint(2, 30) * 20, r.choice([5, 10, 15, 20, 25, 30, 40])
    t = r.choice(["jacket", "bicycle", "desk", "phone", "tent", "guitar", "chair", "lamp", "camera"])
    off = p * d // 100
    ask = r.choice([f"A {t} costs ${p}. In a sale its price is cut by {d}%. What is the sale price in dollars?",
                    f"The price of a {t} was ${p}, and now it is {d}% off. How many dollars does it cost now?"])
    return ask, [f"The discount is {p} * {d} / 100 = ${off}.", f"The new price is {p} - {off} = ${p - off}."], p - off


def m_percent_rest(r):
    n, d = r.randint(2, 25) * 20, r.choice([5, 10, 15, 20, 30, 35, 40, 45, 55, 60, 65, 70, 80])
    yes = n * d // 100
    ask = r.choice([
        f"A school has {n} pupils. {d}% of them walk to school and the rest take the bus. How many take the bus?",
        f"Of {n} seats in a theatre, {d}% are already sold. How many seats are still free?",
        f"A farmer picks {n} apples. {d}% of them are red and the others are green. How many are green?"])
    return ask, [f"{d}% of {n} is {n} * {d} / 100 = {yes}.", f"The rest is {n} - {yes} = {n - yes}."], n - yes


def m_two_legs(r):
    w, a, b, s, t = r.choice(PEOPLE), r.randint(2, 5), r.randint(2, 5), r.randint(6, 16) * 5, r.randint(6, 16) * 5
    ask = r.choice([
        f"{w} drives for {a} hours at {s} km/h and then for {b} hours at {t} km/h. How many kilometres is that in all?",
        (f"A train travels {a} hours at {s} km per hour, stops, and goes on for {b} hours at {t} km per hour. "
        "How far does it travel in kilometres?")])
    return ask, [f"The first part is {a} * {s} = {a * s} km.", f"The second part is {b} * {t} = {b * t} km.",
                 f"The total is {a * s} + {b * t} = {a * s + b * t} km."], a * s + b * t


def m_travel_time(r):
    w, v, h = r.choice(PEOPLE), r.randint(4, 24) * 5, Fraction(r.randint(3, 14), 2)
    d = v * h
    ask = r.choice([f"{w} has to travel {num(d)} km at a steady speed of {v} km/h. How many hours does the trip take?",
                    f"A bus moves at {v} km per hour. How many hours does it need for {num(d)} km?"])
    return ask, ["Time is distance divided by speed.", f"{num(d)} / {v} = {num(h)} hours."], num(h)


def m_average_speed(r):
    w, t, v = r.choice(PEOPLE), r.choice([2, 4, 5]), r.randint(10, 30)
    a = r.randint(v, v * t - 5)
    b = v * t - a
    ask = (f"{w} cycles {a} km before lunch and {b} km after lunch. The riding takes {t} hours altogether. "
           "What is the average speed in km/h?")
    return ask, [f"The whole distance is {a} + {b} = {v * t} km.", f"The average speed is {v * t} / {t} = {v} km/h."], v


def m_fraction_left(r):
    w, b, k = r.choice(PEOPLE), r.choice([3, 4, 5, 6, 8]), r.randint(3, 20)
    a = r.randint(1, b - 2)
    n, c = b * k, r.randint(1, k)
    used, what = a * k, r.choice(["stickers", "marbles", "stamps", "beads", "shells", "cards"])
    left = n - used - c
    ask = r.choice([f"{w} has {n} {what}. {w} gives {a}/{b} of them to a friend and then loses {c}. How many are left?",
                    (f"There are {n} {what} in a box. {w} takes out {a}/{b} of them, and later {c} more. "
                    f"How many {what} stay in the box?")])
    return ask, [f"First, {a}/{b} of {n} is {n} / {b} * {a} = {used}.", f"That leaves {n} - {used} = {n - used}.",
                 f"Then {n - used} - {c} = {left}."], left


def m_ratio(r):
    (x, y), a, b, k = r.sample(PEOPLE, 2), r.randint(1, 4), r.randint(5, 9), r.randint(3, 15)
    n = (a + b) * k
    ask = r.choice([f"{x} and {y} share ${n} in the ratio {a}:{b}. How many dollars does {y} get?",
                    f"{n} sweets are split between {x} and {y} in the ratio {a} to {b}. How many sweets go to {y}?"])
    return ask, [f"There are {a} + {b} = {a + b} parts.", f"One part is {n} / {a + b} = {k}.",
                 f"{y} gets {b} * {k} = {b * k}."], b * k


def m_fence(r):
    a, b, c = r.randint(6, 40), r.randint(4, 30), r.randint(3, 15)
    t = r.choice(["garden", "field", "playground", "chicken yard"])
    p = 2 * (a + b)
    ask = (f"A rectangular {t} is {a} m long and {b} m wide. A fence costs ${c} per metre. "
           f"How many dollars does a fence all around the {t} cost?")
    return ask, [f"The perimeter is 2 * ({a} + {b}) = {p} m.", f"The fence costs {p} * {c} = ${p * c}."], p * c


def m_area(r):
    a, b = r.randint(6, 20), r.randint(6, 20)
    s = r.randint(2, min(a, b) - 2)
    ask = r.choice([
        (f"A rectangular lawn measures {a} m by {b} m. A square pond with sides of {s} m is dug in it. "
        "How many square metres of grass remain?"),
        (f"From a sheet of paper {a} cm by {b} cm, a square of side {s} cm is cut out. "
        "What area is left, in square centimetres?")])
    return ask, [f"The rectangle has area {a} * {b} = {a * b}.", f"The square has area {s} * {s} = {s * s}.",
                 f"What is left is {a * b} - {s * s} = {a * b - s * s}."], a * b - s * s


def m_triangle_box(r):
    a, b, c = r.randint(3, 20), 2 * r.randint(2, 12), r.randint(2, 12)
    if r.random() < 0.5:
        return (f"A triangle has a base of {b} cm and a height of {a} cm. What is its area in square centimetres?",
                ["The area is half of base times height.", f"{b} * {a} / 2 = {a * b // 2}."], a * b // 2)
    return (f"A box is {a} cm long, {b} cm wide and {c} cm high. What is its volume in cubic centimetres?",
            [f"The bottom has area {a} * {b} = {a * b}.", f"The volume is {a * b} * {c} = {a * b * c}."], a * b * c)


def m_average(r):
    w, k = r.choice(PEOPLE), r.choice([3, 4, 5])
    v = [r.randint(55, 100) for _ in range(k - 1)]
    mean = r.randint(70, 85)
    last = mean * k - sum(v)
    if not 40 <= last <= 100:
        return m_average(r)
    plus = " + ".join(map(str, v))
    if r.random() < 0.5:
        return (f"{w} scored {', '.join(map(str, v))} and {last} points in {k} tests. What is the average score?",
                [f"The sum is {plus} + {last} = {mean * k}.", f"The average is {mean * k} / {k} = {mean}."], mean)
    return ((f"{w} got {', '.join(map(str, v))} points in the first {k - 1} tests. What score does {w} need in "
             f"the next test for an average of {mean}?"),
            [f"{k} tests with an average of {mean} need {k} * {mean} = {mean * k} points.",
             f"So far there are {plus} = {sum(v)} points.", f"The next score is {mean * k} - {sum(v)} = {last}."], last)


def m_ages(r):
    (x, y), a, k, t = r.sample(PEOPLE, 2), r.randint(4, 14), r.randint(2, 4), r.randint(2, 12)
    if r.random() < 0.5:
        return (f"{x} is {a} years old and {y} is {k} times as old. How old will {y} be in {t} years?",
                [f"{y} is now {k} * {a} = {k * a}.", f"In {t} years that will be {k * a} + {t} = {k * a + t}."],
                k * a + t)
    return (f"{y} is {k} times as old as {x}. Together they are {(k + 1) * a} years old. How old is {x}?",
            [f"If {x} is x years old, then x + {k}x = {(k + 1) * a}.", f"So {k + 1}x = {(k + 1) * a}.",
             f"x = {(k + 1) * a} / {k + 1} = {a}."], a)


def m_equation(r):
    x, a, b = r.randint(2, 15), r.randint(3, 12), r.randint(1, 30)
    verb = r.choice(["Solve for x", "Find x", "What is x in this equation", "Solve the equation"])
    verb += "? " if verb.startswith("What") else ": "
    if r.random() < 0.5:
        return (f"{verb}{a}x + {b} = {a * x + b}",
                [f"Take {b} from both sides: {a}x = {a * x + b} - {b} = {a * x}.",
                 f"Divide by {a}: x = {a * x} / {a} = {x}."], x)
    c = r.randint(2, a - 1)
    d = (a - c) * x + b
    left = f"{a - c}x" if a - c > 1 else "x"
    steps = [f"Take {c}x from both sides: {left} + {b} = {d}.",
             f"Take {b} from both sides: {left} = {d} - {b} = {d - b}."]
    if a - c > 1:
        steps.append(f"Divide by {a - c}: x = {d - b} / {a - c} = {x}.")
    return f"{verb}{a}x + {b} = {c}x + {d}", steps, x


def m_units(r):
    big, small, k = r.choice([("kilometres", "metres", 1000), ("hours", "minutes", 60), ("kilograms", "grams", 1000),
                              ("metres", "centimetres", 100), ("litres", "millilitres", 1000), ("days", "hours", 24),
                              ("feet", "inches", 12), ("minutes", "seconds", 60), ("weeks", "days", 7)])
    a, b = r.randint(2, 15), r.randint(2, k - 1)
    if r.random() < 0.5:
        one = {"feet": "foot"}.get(big, big[:-1])
        ask = r.choice([f"How many {small} are {a} {big} and {b} {small}?",
                        f"Convert {a} {big} plus {b} {small} to {small}."])
        return ask, [f"One {one} is {k} {small}.", f"{a} * {k} = {a * k}.",
                     f"{a * k} + {b} = {a * k + b} {small}."], a * k + b
    h = Fraction(2 * a + 1, 2)
    return (r.choice([f"Convert {num(h * k)} {small} to {big}.", f"How many {big} are {num(h * k)} {small}?"]),
            [f"{k} {small} are 1 {'foot' if big == 'feet' else big[:-1]}.",
             f"{num(h * k)} / {k} = {num(h)} {big}."], num(h))


def m_sequence(r):
    a, d, q = r.randint(1, 20), r.randint(2, 12), r.choice([2, 3])
    if r.random() < 0.35:
        a = r.randint(2, 9)
        s = [a * q**i for i in range(5)]
        return (f"What number comes next in the sequence {', '.join(map(str, s[:4]))}?",
                [f"Each number is {q} times the one before: {s[0]} * {q} = {s[1]}.", f"{s[3]} * {q} = {s[4]}."], s[4])
    k = r.randint(6, 20)
    s = [a + d * i for i in range(4)]
    return (f"The sequence {', '.join(map(str, s))}, ... goes on in the same way. What is its {k}th term?",
            [f"The step is {s[1]} - {s[0]} = {d}.", f"From the first to the {k}th term there are {k - 1} steps.",
             f"{a} + {k - 1} * {d} = {a} + {(k - 1) * d} = {a + (k - 1) * d}."], a + (k - 1) * d)


def m_order(r):
    a, b, c, d = r.randint(2, 12), r.randint(2, 12), r.randint(2, 9), r.randint(1, 20)
    verb = r.choice(["Calculate", "Work out", "What is the value of", "Evaluate"])
    end = "?" if verb.startswith("What") else "."
    if r.random() < 0.5:
        return (f"{verb} ({a} + {b}) * {c} - {d}{end}", [f"Brackets first: {a} + {b} = {a + b}.",
                f"Then multiply: {a + b} * {c} = {(a + b) * c}.", (f"Then subtract: {(a + b) * c} - {d} = "
                f"{(a + b) * c - d}.")], (a + b) * c - d)
    return (f"{verb} {d} + {a * c} / {c} * {b}{end}", [(f"Division and multiplication go first, left to right: "
            f"{a * c} / {c} = {a}."), f"{a} * {b} = {a * b}.", f"Then add: {d} + {a * b} = {d + a * b}."], d + a * b)


def m_saving(r):
    w, have, s, k = r.choice(PEOPLE), r.randint(5, 60), r.randint(4, 18), r.randint(3, 14)
    t, price = r.choice(["skateboard", "watch", "game", "tent", "drum", "telescope"]), have + s * k
    ask = r.choice([(f"{w} wants a {t} that costs ${price}. {w} has ${have} and saves ${s} a week. After how many "
                     "weeks is there enough money?"),
                    (f"A {t} costs ${price}. {w} already has ${have} and puts aside ${s} each week. How many weeks "
                     "does it take to reach the price?")])
    return ask, [f"The missing amount is {price} - {have} = ${price - have}.",
                 f"The number of weeks is {price - have} / {s} = {k}."], k


def m_wages(r):
    w, p, h, e = r.choice(PEOPLE), r.randint(10, 24), r.randint(20, 40), r.randint(2, 9)
    x = p + r.randint(3, 8)
    total = p * h + x * e
    ask = (f"{w} earns ${p} an hour in {r.choice(['a bakery', 'a library', 'a shop', 'a garage', 'a hotel'])} and ${x} "
           f"for each hour of overtime. How many dollars are {h} normal hours and {e} hours of overtime worth?")
    return ask, [f"Normal hours: {h} * {p} = ${h * p}.", f"Overtime: {e} * {x} = ${e * x}.",
                 f"Total: {h * p} + {e * x} = ${total}."], total


def m_recipe(r):
    p, k, q = r.choice([2, 4, 5, 6, 8]), r.randint(2, 6), r.randint(3, 20)
    g, one = q * 10 * p, q * 10
    n = p + k
    t = r.choice(["flour", "rice", "sugar", "potatoes", "pasta", "tomatoes"])
    ask = r.choice([f"A recipe for {p} people needs {g} g of {t}. How many grams are needed for {n} people?",
                    f"A cook uses {g} g of {t} to serve {p} guests. How many grams of {t} would serve {n} guests?"])
    return ask, [f"One person needs {g} / {p} = {one} g.", f"{n} people need {n} * {one} = {n * one} g."], n * one


def m_groups(r):
    cap_, full, rest = r.choice([6, 8, 12, 20, 24, 45]), r.randint(3, 12), r.randint(1, 5)
    n = cap_ * full + rest
    ask = r.choice([f"{n} people go on a trip. Each bus holds {cap_} people. How many buses are needed?",
                    f"A box holds {cap_} eggs. How many boxes are needed to pack {n} eggs?",
                    f"A class bakes {n} biscuits and puts {cap_} on each tray. How many trays are needed for all?"])
    return ask, [f"{full} * {cap_} = {cap_ * full}, so {full} are filled and {n} - {cap_ * full} = {rest} remain.",
                 f"The remainder needs one more: {full} + 1 = {full + 1}."], full + 1


def m_machines(r):
    a, x, b, h = r.randint(2, 6), r.randint(5, 30), r.randint(7, 12), r.randint(2, 8)
    t = r.choice(["toys", "bottles", "caps", "screws", "cups"])
    ask = (f"{a} equal machines make {a * x} {t} in one hour. How many {t} do {b} such machines make in {h} hours?")
    return ask, [f"One machine makes {a * x} / {a} = {x} an hour.", f"{b} machines make {b} * {x} = {b * x} an hour.",
                 f"In {h} hours that is {b * x} * {h} = {b * x * h}."], b * x * h


def m_chance(r):
    n, p = r.choice([10, 20, 25, 50]), r.randint(2, 18) * 5
    if n * p % 100:
        return m_chance(r)
    k = n * p // 100
    u, v = r.sample(["red", "blue", "green", "yellow", "white", "black"], 2)
    ask = r.choice([(f"A bag holds {k} {u} and {n - k} {v} marbles. One is drawn without looking. What is the chance, "
                    f"in percent, that it is {u}?"),
                    f"In a drawer are {k} {u} and {n - k} {v} socks. What percentage of the socks are {u}?"])
    return ask, [f"In all there are {k} + {n - k} = {n}.", f"{k} / {n} * 100 = {p} percent."], p


def m_pages(r):
    w, a, b, d, e = r.choice(PEOPLE), r.randint(8, 30), r.randint(15, 40), r.randint(2, 6), r.randint(2, 6)
    rest = r.randint(10, 90)
    n = a * d + b * e + rest
    ask = (f"{w} reads a book of {n} pages: {a} pages a day for {d} days, then {b} pages a day for {e} days. "
           "How many pages are left?")
    return ask, [f"First {a} * {d} = {a * d} pages.", f"Then {b} * {e} = {b * e} pages.",
                 f"Read so far: {a * d} + {b * e} = {a * d + b * e}.", f"Left: {n} - {a * d + b * e} = {rest}."], rest


def m_interest(r):
    w, p, i, t = r.choice(PEOPLE), r.randint(2, 30) * 100, r.randint(2, 8), r.randint(2, 6)
    y = p * i // 100
    ask = (f"{w} puts ${p} in a bank at {i}% simple interest a year. How many dollars are in the account "
           f"after {t} years?")
    return ask, [f"One year gives {p} * {i} / 100 = ${y}.", f"{t} years give {t} * {y} = ${t * y}.",
                 f"The account holds {p} + {t * y} = ${p + t * y}."], p + t * y


def m_clock(r):
    h, m, d = r.randint(7, 18), r.randint(1, 11) * 5, r.randint(13, 40) * 5
    e = h * 60 + m + d
    f, g = 60 - m, (e - (h + 1) * 60)
    t = r.choice(["film", "concert", "football game", "train ride", "meeting", "flight"])
    ask = f"A {t} begins at {h}:{m:02d} and ends at {e // 60}:{e % 60:02d}. How many minutes does it last?"
    return ask, [f"From {h}:{m:02d} to {h + 1}:00 there are {f} minutes.",
                 f"From {h + 1}:00 to {e // 60}:{e % 60:02d} there are {g} minutes.", f"{f} + {g} = {d} minutes."], d


def m_consecutive(r):
    a = r.randint(3, 90)
    return ((f"The sum of three consecutive whole numbers is {3 * a + 3}. What is the "
            f"{r.choice(['smallest', 'lowest'])} of them?"),
            [f"Call the smallest x: x + (x + 1) + (x + 2) = {3 * a + 3}.", f"So 3x + 3 = {3 * a + 3} and 3x = {3 * a}.",
             f"x = {3 * a} / 3 = {a}."], a)


def m_farm(r):
    w, hens, each, keep, price = (r.choice(PEOPLE), r.randint(5, 20), r.randint(4, 6), r.randint(2, 8) * 2,
                                  r.randint(2, 6) * 5)
    eggs = hens * each
    ask = (f"{w} has {hens} hens. Each lays {each} eggs a week. {w} keeps {keep} eggs and sells the rest for {price} "
           "cents each. How many dollars does that bring in a week?")
    return ask, [f"The hens lay {hens} * {each} = {eggs} eggs.", f"{eggs} - {keep} = {eggs - keep} eggs are sold.",
                 (f"{eggs - keep} * {price} = {(eggs - keep) * price} cents, which is "
                 f"${cash((eggs - keep) * price)}.")], cash((eggs - keep) * price)


def math_pairs():
    """Word problems from the m_ templates above, solved step by step."""
    rng, pairs = random.Random(SEED), []
    for template in [f for name, f in globals().items() if name.startswith("m_")]:
        made = {}
        while len(made) < PER_TEMPLATE:
            ask, steps, answer = template(rng)
            made.setdefault(ask, "\n".join([*steps, f"The answer is {answer}."]))
        pairs += [pair(a, b) for a, b in made.items()]
    return pairs


# ---------------------------------------------------------------- code

MODULES = """
statistics textwrap posixpath genericpath random heapq bisect fractions _pydecimal string calendar shutil fnmatch
functools collections colorsys copy difflib html http inspect json mimetypes numbers operator pathlib pprint queue sched
shlex socket tokenize urllib uuid wave xml zipfile ast argparse asyncio concurrent configparser contextlib csv
dataclasses datetime dis ftplib getopt gettext glob imaplib ipaddress linecache locale mailbox netrc nntplib os pickle
pickletools pkgutil plistlib poplib py_compile smtplib ssl stat subprocess symtable sysconfig telnetlib tempfile
threading timeit traceback types typing unittest warnings weakref webbrowser xmlrpc zipapp email importlib base64
binhex bdb cmd code codecs codeop compileall cgi chunk aifc filecmp fileinput gzip bz2 lzma hashlib hmac imghdr keyword
modulefinder multiprocessing nturl2path pdb pyclbr pydoc quopri reprlib rlcompleter runpy secrets selectors shelve
smtpd sndhdr socketserver sunau tabnanny token tracemalloc wsgiref xdrlib zoneinfo _collections_abc _weakrefset
_pyio _strptime cProfile crypt ensurepip graphlib io ntpath abc enum
"""
# A source file that carries a notice of its own is left out: what ships is under the PSF licence alone.
OTHER_NOTICE = ("permission to use", "permission is hereby", "apache license", "all rights reserved", "redistribut",
                "gisle aas", "provided 'as-is'")
DULL_DOC = ("deprecated", "internal", "private", "xxx", "todo", "see ", "test", ">>>", "not ", "undocumented", "helper")


def source_files():
    """(module name, path) of every source file to read, in a fixed order."""
    root = Path(sysconfig.get_path("stdlib"))
    for name in MODULES.split():
        top = root / name
        for path in sorted(top.rglob("*.py")) if top.is_dir() else [root / f"{name}.py"]:
            parts = path.relative_to(root).with_suffix("").parts
            skip = any(p in ("test", "tests", "__main__", "__pycache__") or "win" in p or "test_" in p for p in parts)
            if path.exists() and not skip:
                yield ".".join(p for p in parts if p != "__init__"), path


def functions(path):
    """(class name or None, ast node, code without docstring, first paragraph of the docstring) of one file."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if any(notice in text.lower() for notice in OTHER_NOTICE):
        return
    lines, tree = text.splitlines(), ast.parse(text)
    owners = [(None, tree)] + [(n.name, n) for n in tree.body if isinstance(n, ast.ClassDef)]
    for owner, node in owners:
        for f in node.body:
            if not isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) or f.name.startswith("_"):
                continue
            doc = ast.get_docstring(f)
            if not doc or len(f.body) < 2 or f.body[0].lineno <= f.lineno or (owner or "").startswith("_"):
                continue
            if isinstance(f.body[1], (ast.Raise, ast.Pass)) or f.body[0].end_lineno == f.body[1].lineno:
                continue
            start = min([f.lineno] + [d.lineno for d in f.decorator_list]) - 1
            body = lines[f.body[0].end_lineno:f.end_lineno]
            while body and not body[0].strip():
                body.pop(0)
            code = textwrap.dedent("\n".join(lines[start:f.body[0].lineno - 1] + body)).rstrip()
            about = " ".join(inspect.cleandoc(doc).split("\n\n")[0].split()).rstrip(":")
            about = cap(about)
            good = 25 <= len(about) <= 260 and "->" not in about and not about.lower().startswith(DULL_DOC)
            if good and 3 <= code.count("\n") + 1 <= 16 and len(code) <= 600 and "XXX" not in code:
                yield owner, f, code, about if about[-1] in ".!?" else about + "."


def code_prompt(rng, module, owner, f, about):
    """A request for one function, in one of several styles."""
    args = ast.unparse(f.args)
    head = ("async " if isinstance(f, ast.AsyncFunctionDef) else "") + f"def {f.name}({args}):"
    kinds = [ast.unparse(d) for d in f.decorator_list]
    if "property" in kinds:
        return rng.choice([f"Write the Python property `{f.name}` of the class `{owner}`.\n\n{about}",
                           f"A class `{owner}` needs a read-only property `{f.name}`. {about}"])
    kind = "function" if owner is None else "class method" if "classmethod" in kinds else "method"
    if head.startswith("async"):
        kind = "async " + kind
    of = f" of the class `{owner}`" if owner else ""
    stub = "\n".join([f"@{k}" for k in kinds] + [head, f'    """{about}"""'])
    return rng.choice([
        f"Write a Python {kind} `{f.name}({args})`{of}.\n\n{about}",
        f"Complete the {kind}{of}:\n```python\n{stub}\n```",
        f"Complete the {kind}{of}:\n```python\n{stub}\n```",
        f"Implement the Python {kind} `{f.name}({args})`{of}. {about}",
        f"How could the {kind} `{f.name}({args})`{of} in Python's `{module}` module be written? {about}",
        f"{about}\n\nPlease write this as a Python {kind} `{f.name}({args})`{of}."])


def code_pairs():
    """Functions of the standard library: the docstring is the request, the code the answer."""
    rng, pairs, seen = random.Random(SEED + 1), [], set()
    for module, path in source_files():
        found = list(functions(path))
        for owner, f, code, about in rng.sample(found, min(PER_MODULE, len(found))):
            if code not in seen:
                seen.add(code)
                pairs.append(pair(code_prompt(rng, module, owner, f, about), f"```python\n{code}\n```"))
    pairs = unique(pairs)
    return rng.sample(pairs, min(CODE_LIMIT, len(pairs)))


# ---------------------------------------------------------------- commonsense: tables of facts, one row a line

# object | what it is used to do | where it is usually found | what it is usually made of
OBJECTS = """
a hammer | drive nails into wood | in a toolbox | steel with a wooden or plastic handle
a kettle | boil water | in the kitchen | steel or plastic
a toothbrush | clean your teeth | in the bathroom | plastic with nylon bristles
an umbrella | stay dry in the rain | near the front door | cloth stretched over a metal frame
a pillow | rest your head while you sleep | on a bed | soft filling inside a cotton cover
a ladder | reach high places | in a garage or shed | aluminium or wood
a broom | sweep the floor | in a cleaning cupboard | stiff bristles on a long stick
a pair of scissors | cut paper or cloth | in a desk drawer | steel blades with plastic handles
a refrigerator | keep food cold | in the kitchen | metal and plastic
a bookshelf | store books | in a living room or library | wood
a bucket | carry water | in a shed or laundry room | plastic or metal
a candle | give light when the power is out | in a drawer or on a table | wax around a cotton wick
a clock | see what time it is | on a wall | plastic, metal and glass
a mirror | look at your own face | in the bathroom or hallway | glass with a shiny metal coating
a blanket | keep warm in bed | on a bed or sofa | wool, cotton or fleece
a frying pan | fry eggs | in the kitchen | metal
a spoon | eat soup | in a cutlery drawer | stainless steel
a fork | pick up pieces of food | in a cutlery drawer | stainless steel
a bread knife | slice a loaf of bread | in the kitchen | a steel blade with a firm handle
a key | open a locked door | on a key ring | metal
a backpack | carry school books on your back | on a hook near the door | strong cloth
a bicycle | ride from place to place by pedalling | in a garage or on a bike rack | metal with rubber tyres
a helmet | protect your head while cycling | near a bicycle | hard plastic with foam inside
a towel | dry your skin after a shower | in the bathroom | cotton
a bar of soap | wash your hands | beside a sink | fats or oils mixed with an alkali
a screwdriver | turn screws | in a toolbox | a steel shaft with a plastic handle
a saw | cut wood | in a workshop | a toothed steel blade with a handle
a shovel | dig holes in the ground | in a garden shed | a metal blade on a wooden handle
a watering can | water the plants | in a garden | plastic or metal
a tent | sleep outdoors | at a campsite | waterproof cloth and light poles
a sleeping bag | stay warm while camping | inside a tent | padded cloth
a torch | see in the dark | in a drawer or camping bag | plastic or metal with a small lamp
a telescope | look at the stars | in an observatory | a tube with lenses or mirrors
a microscope | look at very tiny things | in a laboratory | metal with glass lenses
a thermometer | measure temperature | in a medicine cabinet | glass or plastic
a pair of glasses | see more clearly | on someone's face | lenses in a metal or plastic frame
a wallet | keep banknotes and cards together | in a pocket or bag | leather or cloth
an envelope | send a letter | in a desk or post office | paper
a postage stamp | show that the cost of mailing has been paid | on an envelope | paper with glue on the back
a ruler | draw straight lines | in a pencil case | plastic or wood
an eraser | rub out pencil marks | in a pencil case | rubber or soft plastic
a pencil | write or draw | in a pencil case | wood around a graphite core
a stapler | fasten sheets of paper together | on an office desk | metal and plastic
a map | find your way in an unknown place | in a car or backpack | paper
a compass | tell which way is north | in a hiker's pocket | a magnetic needle in a small case
a suitcase | pack clothes for a journey | in a wardrobe or attic | hard plastic or cloth with wheels
an oven | bake a cake | in the kitchen | metal with a glass door
a toaster | toast slices of bread | on a kitchen counter | metal and plastic
a washing machine | wash clothes | in a laundry room | metal and plastic
an iron | smooth wrinkled clothes | in a laundry room | a flat metal plate with a plastic handle
a vacuum cleaner | suck up dust from the carpet | in a closet | plastic with an electric motor
a needle | sew a button onto a shirt | in a sewing box | steel
a lawnmower | cut the grass | in a garden shed | metal with sharp blades
a fishing rod | catch fish | near a lake or river | fibreglass or carbon fibre
a life jacket | stay afloat in the water | on a boat | foam covered with bright cloth
an anchor | stop a ship from drifting | on a boat | heavy metal
a fire extinguisher | put out a small fire | on the wall of a public building | a metal cylinder with a hose
a smoke alarm | warn people about a fire | on the ceiling | plastic with a sensor and a battery
a bandage | cover a wound | in a first-aid kit | cotton or elastic cloth
a stethoscope | listen to a heartbeat | in a doctor's office | rubber tubes and a metal disc
a traffic light | tell drivers when to stop and go | at a road junction | metal with coloured lamps
a seat belt | keep passengers safe in a crash | in a car | strong woven nylon
a chalkboard eraser | wipe chalk off a board | in a classroom | felt on a wooden block
a drum | beat out a rhythm | in a band | a tight skin over a hollow frame
a violin | play music with a bow | in an orchestra | wood with four strings
a whistle | get everyone's attention at a game | around a referee's neck | plastic or metal
a racket | hit a tennis ball | on a tennis court | a light frame with strings
a pair of boots | keep your feet dry in mud | near the front door | rubber or leather
a pair of gloves | keep your hands warm | in a coat pocket | wool or leather
an egg carton | keep eggs from breaking | in the fridge or a shop | cardboard
a rubbish bin | throw away waste | in the kitchen | plastic or metal
a doormat | wipe your shoes before you go in | in front of a door | coarse fibres or rubber
a corkscrew | pull the cork out of a bottle | in a kitchen drawer | metal
a grater | shred cheese | in the kitchen | metal with many small sharp holes
a rolling pin | flatten dough | in the kitchen | wood
a sieve | drain or sift food | in the kitchen | metal or plastic mesh
a wheelbarrow | move a heavy load of soil | in a garden | a metal tub with one wheel and two handles
a calculator | do sums quickly | on a desk | plastic with small electronic parts
"""

# cause (when ...) | effect
CAUSES = """
you leave ice cream in the sun | it melts
you drop a glass on a stone floor | it breaks into pieces
you forget to water a houseplant | it wilts and may die
you put water in the freezer | it turns into ice
you boil water for a long time | it turns into steam
you leave bread in the toaster too long | it burns
you stay in the sun too long without sunscreen | your skin gets sunburned
you do not sleep at night | you feel tired the next day
you leave milk out for several warm days | it goes sour
you touch a hot stove | you burn your fingers
you leave an iron nail out in the rain | it rusts
you blow too much air into a balloon | it bursts
you turn off the light in a room without windows | it gets dark
you drive over a sharp nail | the tyre may go flat
you add sugar to tea and stir | the sugar dissolves and the tea tastes sweet
you leave your phone unplugged and in use all day | its battery runs down
you mix yellow and blue paint | you get green paint
you run very fast | your heart beats faster
you walk barefoot on snow | your feet get cold
you plant a bean in moist, warm soil | it sprouts after some days
you eat far too many sweets at once | your stomach may hurt
you peel and chop an onion | your eyes begin to water
you push a swing | it moves back and forth
you hold a magnet near a steel paper clip | the clip sticks to the magnet
you leave wet clothes in the wind and sun | they dry
you walk across a floor that was just mopped | you may slip
you throw a stone into a pond | ripples spread across the water
you drop a ball from a window | it falls to the ground
you throw a piece of dry wood into a fire | it burns
you cut bread with a blunt knife | the slices come out ragged
you shout in a large empty cave | you hear an echo
you leave the bath tap running with the plug in | the bath overflows
you keep a candle under an upside-down jar | the flame goes out because the air is used up
you rub your hands together | they get warmer
you leave a bicycle unlocked in a busy street | someone may steal it
you study well before a test | you are more likely to do well
you forget to set an alarm clock | you may wake up late
you spill juice on a white shirt | it leaves a stain
you put too much salt in the soup | it tastes too salty
you bake a cake without any baking powder | it stays flat and dense
you leave a puddle in the hot sun | it dries up
you open the window on a cold day | the room gets colder
you press the brakes of a bicycle | it slows down
you do not brush your teeth for a long time | you may get cavities
you shake a bottle of fizzy drink and open it | it sprays out
you write on wet paper with a fountain pen | the ink spreads and smudges
"""

# word | opposite | a sentence
OPPOSITES = """
hot | cold | Soup is served hot, while ice cream is served cold
big | small | An elephant is big and a mouse is small
fast | slow | A cheetah is fast and a snail is slow
full | empty | A full glass becomes empty when you drink the water
heavy | light | A brick is heavy and a feather is light
wet | dry | A wet towel becomes dry in the sun
open | closed | A shop that is open in the day may be closed at night
early | late | If you leave early you will not be late
loud | quiet | A drum is loud and a library is quiet
hard | soft | A stone is hard and a pillow is soft
old | new | People often replace an old phone with a new one
deep | shallow | The sea is deep and a puddle is shallow
wide | narrow | A motorway is wide and a footpath is narrow
rough | smooth | Sandpaper is rough and glass is smooth
sharp | blunt | A sharp knife becomes blunt with use
clean | dirty | Clean shoes get dirty in the mud
strong | weak | Strong rope holds a heavy load and weak thread snaps
rich | poor | A rich person has a lot of money and a poor person has little
thick | thin | A dictionary is thick and a leaflet is thin
bright | dim | Midday light is bright and candlelight is dim
brave | cowardly | A brave person faces danger and a cowardly person runs from it
polite | rude | Saying thank you is polite and pushing in line is rude
buy | sell | Customers buy bread and bakers sell it
push | pull | You push a pram and pull a sledge
arrive | leave | Trains arrive at a station and then leave again
remember | forget | A list helps you remember what you might forget
win | lose | When one team wins a match, the other must lose
float | sink | Corks float and stones sink
begin | end | Most films begin with a title and end with the credits
laugh | cry | People often laugh when they are happy and cry when they are sad
above | below | The ceiling is above you and the floor is below you
inside | outside | When it rains outside, people like to stay inside
before | after | We wash our hands before a meal and clear the table after it
always | never | The sun always rises in the east and never in the west
generous | stingy | A generous friend shares and a stingy one does not
ancient | modern | The pyramids are ancient and skyscrapers are modern
lend | borrow | If I lend you a book, you borrow it from me
raise | lower | You raise a flag in the morning and lower it in the evening
visible | hidden | A coin on the table is visible and a coin under the rug is hidden
tight | loose | A tight shoe pinches and a loose one slips off
cheap | expensive | A pencil is cheap and a car is expensive
"""

# animal | young | home | sound (verb) | food; a dash leaves a question out
ANIMALS = """
a dog | puppy | a house or a kennel | barks | meat and dog food
a cat | kitten | a house with people | meows | meat and fish
a cow | calf | a barn or a pasture | moos | grass and hay
a horse | foal | a stable | neighs | grass, hay and oats
a sheep | lamb | a pasture | bleats | grass
a pig | piglet | a sty | grunts and oinks | roots, grain and scraps
a hen | chick | a coop | clucks | grain, seeds and insects
a duck | duckling | a pond | quacks | water plants and small insects
a goose | gosling | near a lake or on a farm | honks | grass and grain
a lion | cub | the African savannah | roars | the meat of other animals
a bear | cub | a forest with a den | growls | berries, fish and roots
a wolf | pup | forests and open wild land | howls | deer and smaller animals
a frog | tadpole | ponds and wet places | croaks | insects
a bee | larva | a hive | buzzes | nectar and pollen
an owl | owlet | a hollow tree or a barn | hoots | mice and other small animals
a goat | kid | farms and rocky hills | bleats | leaves, grass and shrubs
a deer | fawn | a forest | - | leaves, shoots and grass
a rabbit | kit | a burrow | - | grass and leafy plants
a kangaroo | joey | the grasslands of Australia | - | grass
a swan | cygnet | lakes and slow rivers | - | water plants
a butterfly | caterpillar | gardens and meadows | - | nectar from flowers
a penguin | chick | icy and rocky southern coasts | - | fish and krill
a polar bear | cub | the icy Arctic | - | seals
a camel | calf | hot, dry deserts | - | dry grass and thorny plants
a squirrel | kit | trees in woods and parks | - | nuts and seeds
a spider | spiderling | a web or a quiet corner | - | insects
a mouse | pup | a small hole or nest | squeaks | grain and seeds
an elephant | calf | the grasslands and forests of Africa and Asia | trumpets | grass, leaves and bark
a giraffe | calf | the African savannah | - | leaves from tall trees
a whale | calf | the ocean | - | fish, krill or squid
a snake | snakelet | grass, rocks or trees | hisses | small animals such as mice
an ant | larva | a nest under the ground | - | seeds, sweet things and small insects
a beaver | kit | a lodge of sticks in the water | - | bark and twigs
a donkey | foal | a farm or a stable | brays | grass and hay
a panda | cub | mountain forests in China | - | bamboo
a koala | joey | eucalyptus trees in Australia | - | eucalyptus leaves
"""

# person | what they do | where they work | something they use
WORKERS = """
a baker | makes bread and cakes | in a bakery | an oven
a teacher | helps pupils learn | in a school | a whiteboard
a firefighter | puts out fires and rescues people | at a fire station | a water hose
a dentist | takes care of people's teeth | in a dental clinic | a small mirror
a farmer | grows crops and raises animals | on a farm | a tractor
a pilot | flies aeroplanes | in a cockpit | the flight controls
a nurse | looks after sick people | in a hospital | a thermometer
a carpenter | builds things from wood | in a workshop | a saw
a plumber | repairs water pipes | in houses and buildings | a wrench
a tailor | makes and alters clothes | in a tailor's shop | a needle and thread
a librarian | helps people find books | in a library | a catalogue
a chef | prepares meals | in a restaurant kitchen | a sharp knife
a mechanic | repairs cars | in a garage | a wrench
a hairdresser | cuts and styles hair | in a salon | scissors and a comb
a gardener | takes care of plants | in gardens and parks | a spade
a painter | puts paint on walls or canvas | in houses or a studio | a brush
a postal worker | delivers letters and parcels | along the streets of a town | a mailbag
a judge | decides legal cases | in a courtroom | books of law
a vet | treats sick animals | in an animal clinic | a stethoscope
a fisherman | catches fish to sell | on a boat | a net
a photographer | takes pictures | in a studio or outdoors | a camera
a bus driver | takes passengers along a route | on a bus | a steering wheel
an astronomer | studies stars and planets | in an observatory | a telescope
a bricklayer | builds walls from bricks | on a building site | a trowel
an electrician | installs and repairs wiring | in houses and factories | a voltage tester
a pharmacist | prepares and hands out medicine | in a pharmacy | a set of scales
a shepherd | looks after sheep | on hills and pastures | a crook
a beekeeper | keeps bees and collects honey | beside the hives | a protective veil
a lifeguard | watches over swimmers | at a beach or pool | a rescue float
a referee | makes sure the players follow the rules | on a sports field | a whistle
a cashier | takes payment from customers | at the checkout of a shop | a till
a journalist | reports the news | in a newsroom | a notebook
an architect | designs buildings | in an office | drawing software
a butcher | cuts and sells meat | in a butcher's shop | a cleaver
a miner | digs coal or metal ore out of the ground | in a mine | a drill
"""

# what comes first | what comes second | why
ORDER = """
putting on socks | putting on shoes | shoes go over the socks
cracking an egg | frying the egg | the egg must come out of its shell before it can be fried
planting a seed | picking the fruit | the plant has to grow before it bears fruit
filling the kettle | pouring the tea | there must be hot water before tea can be made
writing a letter | sealing the envelope | the letter has to be inside before the envelope is closed
unlocking the door | walking into the house | a locked door cannot be opened
buying a ticket | boarding the train | passengers need a ticket before they travel
mixing the dough | baking the bread | the oven only bakes what has already been mixed
washing the clothes | ironing the clothes | clothes are ironed once they are clean
undressing | taking a shower | you do not want to get your clothes wet
laying the foundation | putting on the roof | a building is raised from the ground up
peeling a banana | eating the banana | the skin is not eaten
learning to walk | learning to run | running needs the balance that walking teaches
loading the dishwasher | starting the dishwasher | there must be dishes inside to be washed
packing a suitcase | leaving for the airport | you take the packed suitcase with you
opening an umbrella | walking out into the rain | it should protect you from the first drop
chewing food | swallowing food | food must be broken into small pieces first
ordering a meal | paying the bill | the bill depends on what was ordered
saddling a horse | riding off on the horse | the rider sits in the saddle
putting toothpaste on the brush | brushing your teeth | the toothpaste is what you brush with
seeing a flash of lightning | hearing its thunder | light travels much faster than sound
a caterpillar making a cocoon | a moth coming out of it | the change into a moth happens inside
spreading butter on bread | eating the sandwich | a sandwich has to be made before it is eaten
inflating a tyre | riding the bicycle | a flat tyre cannot carry the rider well
fastening the seat belt | driving away | the belt should protect you during the whole trip
wrapping a present | handing over the present | the wrapping keeps it a surprise
breakfast | dinner | breakfast is the morning meal and dinner is eaten in the evening
rinsing the shampoo out | drying the hair | wet soapy hair cannot be dried properly
"""

# most | least | things in rising order
SCALES = [
    ("bigger", "smaller", "an ant, a mouse, a cat, a sheep, a horse, an elephant, a blue whale"),
    ("heavier", "lighter", "a feather, a pencil, a brick, a sofa, a car, a loaded train"),
    ("faster", "slower", "a snail, a person out for a walk, a galloping horse, a racing car, a jet plane"),
    ("longer", "shorter", "a second, a minute, an hour, a day, a week, a month, a year, a century"),
    ("hotter", "colder", "an ice cube, a warm bath, boiling water, the flame of a candle, the surface of the sun"),
    ("taller", "shorter", "a blade of mown grass, a chair, a door, a two-storey house, a church tower, a mountain"),
    ("louder", "quieter", "a whisper, a normal talking voice, a shout, a jet engine nearby"),
    ("deeper", "shallower", "a puddle, a bathtub, a swimming pool, the ocean"),
    ("more expensive", "cheaper", "a pencil, a pair of shoes, a bicycle, a new car, a large house"),
    ("harder", "softer", "butter at room temperature, a rubber ball, a brick, a diamond"),
]

# question | answer
TIMES = """
Which season comes after winter? | Spring comes after winter.
Which season comes after summer? | Autumn comes after summer.
In which season do many trees lose their leaves? | Many trees lose their leaves in autumn.
In which season do people in cold countries build snowmen? | They build snowmen in winter, when there is snow.
When do most flowers begin to bloom? | Most flowers begin to bloom in spring, when it gets warmer.
Which day comes after Sunday? | Monday comes after Sunday.
Which day comes just before Friday? | Thursday comes just before Friday.
Which month comes after April? | May comes after April.
What is the last month of the year? | December is the last month of the year.
What is the shortest month of the year? | February is the shortest month; it has 28 days, or 29 in a leap year.
How many days are there in a week? | There are seven days in a week.
How many months are there in a year? | There are twelve months in a year.
How many hours are there in a full day? | A full day has 24 hours.
At what time of day does the sun rise? | The sun rises in the morning.
At what time of day does the sun set? | The sun sets in the evening.
When do people usually eat breakfast? | People usually eat breakfast in the morning, soon after they get up.
When can you see the stars best? | You can see the stars best on a clear, dark night.
When do most people wear thick coats? | Most people wear thick coats in winter, because it is cold.
When do children usually go to bed? | Children usually go to bed in the evening.
Why do people put up their umbrellas? | They put up umbrellas because it is raining and they want to stay dry.
What do you usually wear on your feet at the beach? | At the beach people usually wear sandals or go barefoot.
What should you do if you feel thirsty? | If you feel thirsty, you should drink some water.
What should you do if you feel cold in a room? | You could put on a sweater, close the window or turn up the heating.
What do people do at a red traffic light? | They stop and wait until the light turns green.
Why do cars have headlights? | Headlights let drivers see the road, and be seen, when it is dark.
Why do we keep meat in the fridge? | The cold slows down bacteria, so the meat stays fresh for longer.
Why do houses have windows? | Windows let in daylight and fresh air, and people can see out of them.
Why do people wear watches? | People wear watches so that they can see what time it is.
Why do birds build nests? | Birds build nests to lay their eggs and raise their young in a safe place.
Why do people whisper in a library? | They whisper so that they do not disturb people who are reading.
Why do we wash our hands before eating? | Washing removes dirt and germs that could make us ill.
Why should you look both ways before crossing a street? | You look both ways to make sure that no car is coming.
What do you need to open a tin of beans? | You need a tin opener, unless the tin has a ring to pull.
How can you tell that a cake in the oven is done? | You can push a wooden stick into it; if the stick comes out clean, \
the cake is done.
What do you do with a letter in a stamped envelope? | You post it in a letter box or at a post office.
"""

# T or F | statement | reason
STATEMENTS = """
T | Fish breathe with gills | Gills take oxygen out of the water
F | Fish can live for weeks on dry land | Fish need water to breathe with their gills
T | Ice floats on water | Ice is less dense than liquid water
F | A stone floats on water | A stone is denser than water, so it sinks
T | The sun is much larger than the Earth | More than a million Earths would fit inside the sun
F | The moon makes its own light like the sun | The moon only reflects the light of the sun
T | Plants need light to grow | They use light to make their food
F | Penguins can fly long distances | Penguins cannot fly, but they are very good swimmers
T | A triangle has three sides | Every triangle has exactly three sides and three corners
F | A square has five corners | A square has four corners
T | Honey is made by bees | Bees make honey from the nectar of flowers
F | Milk grows on trees | Milk comes from animals such as cows and goats
T | Wood can burn | Wood is a fuel that catches fire when it gets hot enough
F | Glass is a good material for a hammer | Glass breaks when it is struck hard
T | Metal spoons get warm in hot soup | Metal conducts heat well
F | You can see well in a completely dark room | Our eyes need light to see
T | Salt dissolves in water | When you stir it in, the salt seems to disappear
F | Oil and water mix easily | Oil is lighter and stays on top of the water
T | Bats are mammals | Bats have fur and feed their young with milk
F | Spiders have six legs | Spiders have eight legs; insects have six
T | A leap year has 366 days | It has one extra day, 29 February
F | A week has ten days | A week has seven days
T | The heart pumps blood | It is a muscle that pushes blood through the body
F | People breathe with their stomach | People breathe with their lungs
T | Bread is made from flour | Flour and water are the main parts of bread dough
F | Cheese is made from potatoes | Cheese is made from milk
T | Sound needs something such as air to travel through | There is no sound in empty space
F | Thunder can be heard before its lightning is seen | Light is faster than sound, so the lightning is seen first
T | Owls hunt mostly at night | Most owls see and hear very well in the dark
F | Whales are fish | Whales are mammals that breathe air
T | A rainbow can appear when the sun shines during rain | The raindrops split sunlight into colours
F | Snow is warm to the touch | Snow is frozen water, so it is cold
T | Paper is usually made from wood | Wood fibres are pressed into thin sheets
F | A kilogram of feathers is lighter than a kilogram of iron | Both weigh exactly one kilogram
T | Rubber is used for tyres | Rubber bends without breaking and grips the road
F | Cars can drive without any source of energy | A car needs fuel or electricity to move
T | Tadpoles turn into frogs | They grow legs and lose their tails as they become adults
F | Caterpillars turn into birds | Caterpillars turn into butterflies or moths
T | Shadows are longer in the late afternoon than at noon | The sun stands lower in the sky then
F | The sun goes around the Earth once a day | The Earth turns on its axis, which only makes it look that way
T | Most adults have more teeth than babies do | Babies are usually born without visible teeth
F | Cactuses need a lot of rain | Cactuses store water and live in dry places
T | Washing your hands helps to prevent illness | It removes many germs
F | It is safe to use a hairdryer in the bathtub | Electricity and water together are very dangerous
T | A compass needle points north | It lines up with the magnetic field of the Earth
F | Ice cream keeps best in a warm cupboard | It melts there, so it belongs in the freezer
"""

# the odd one | what the others are | what the odd one is | the others
ODD = """
carrot | fruits | a vegetable | apple, banana, pear
dolphin | fish | a mammal | trout, salmon, tuna
hammer | things to eat with | a tool | fork, spoon, knife
car | things that fly | a road vehicle | aeroplane, helicopter, glider
violin | instruments you blow | a string instrument | flute, trumpet, clarinet
table | animals | a piece of furniture | dog, cow, horse
red | shapes | a colour | circle, square, triangle
Monday | months | a day of the week | March, July, October
spider | insects | not an insect, because it has eight legs | ant, bee, beetle
milk | hot meals | a drink | soup, stew, curry
shoe | things worn on the head | worn on the foot | hat, cap, helmet
bicycle | vehicles with engines | moved by pedalling | truck, bus, motorbike
rose | trees | a flower | oak, pine, birch
winter | meals | a season | breakfast, lunch, dinner
eagle | birds that cannot fly | a bird that can fly | penguin, ostrich, emu
chair | vehicles | a piece of furniture | tram, train, lorry
gold | liquids | a metal | water, oil, juice
nose | parts of a house | a part of the body | roof, wall, door
football | board games | a ball game | chess, draughts, ludo
doctor | family members | a profession | mother, uncle, cousin
sofa | kitchen appliances | living-room furniture | oven, fridge, dishwasher
snow | kinds of cloth | a kind of weather | cotton, silk, wool
lion | farm animals | a wild animal | cow, sheep, pig
seven | even numbers | an odd number | two, four, eight
Paris | countries | a city | Italy, Brazil, Japan
pencil | clothes | a thing to write with | shirt, trousers, jacket
onion | sweet foods | a vegetable with a sharp taste | cake, chocolate, honey
rain | feelings | a kind of weather | joy, anger, fear
elbow | parts of the face | a part of the arm | nose, mouth, eye
river | buildings | flowing water | castle, church, school
moon | planets | not a planet but a body that circles one | Mars, Venus, Jupiter
ladder | musical instruments | something to climb on | piano, guitar, drum
ice | things that are usually hot | frozen water | fire, steam, lava
"""


def rows(table):
    """The rows of a table of facts."""
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def or_list(words):
    """'a, b or c'"""
    return ", ".join(words[:-1]) + " or " + words[-1]


def object_pairs(rng):
    """What things are for, where they are and what they are made of."""
    for thing, use, place, stuff in rows(OBJECTS):
        ask = rng.choice([f"What is {thing} used for?", f"What can you do with {thing}?",
                          f"Why might someone need {thing}?"])
        yield pair(ask, f"{cap(thing)} is used to {use}.")
        ask = rng.choice([f"Where would you usually find {thing}?", f"Where does {thing} belong?",
                          f"In what place would you look for {thing}?"])
        yield pair(ask, f"You would usually find {thing} {place}.")
        ask = rng.choice([f"What is {thing} usually made of?", f"Which material is {thing} made from?"])
        yield pair(ask, f"{cap(thing)} is usually made of {stuff}.")
        mine, their = (use.replace("your", a).replace("you ", b) for a, b in (("my", "I "), ("their", "they ")))
        ask = rng.choice([f"I want to {mine}. What should I use?", f"Name something that helps you to {use}.",
                          f"What could people use to {their}?"])
        yield pair(ask, f"{cap(thing)} is good for that. You would usually find it {place}.")


def cause_pairs(rng):
    """What happens if, and why."""
    for cause, effect in rows(CAUSES):
        yield pair(rng.choice([f"What happens if {cause}?", f"What would you expect when {cause}?",
                               f"Finish the sentence: If {cause}, ..."]), f"If {cause}, {effect}.")
    clear = [effect for _, effect in rows(CAUSES) if len(effect.split()) > 4]  # short ones would fit many causes
    for cause, effect in rows(CAUSES):
        choices = [effect, *rng.sample([e for e in clear if e != effect], 2)]
        rng.shuffle(choices)
        listed = "\n".join(f"{'ABC'[i]}. {cap(c)}." for i, c in enumerate(choices))
        yield pair(f"What is the most likely result when {cause}?\n{listed}",
                   f"{'ABC'[choices.index(effect)]}. When {cause}, {effect}.")


def animal_pairs(rng):
    """Young, homes, sounds and food."""
    for animal, young, home, sound, food in rows(ANIMALS):
        bare = animal.split(" ", 1)[1]
        a = "an" if young[0] in "aeiou" else "a"
        verb = rng.choice([f"What is a young {bare} called?", f"What do you call the young of {animal}?"])
        yield pair(verb, f"The young of {animal} is called {a} {young}.")
        yield pair(rng.choice([f"Where does {animal} live?", f"What is the usual home of {animal}?"]),
                   f"The usual home of {animal} is {home}.")
        yield pair(rng.choice([f"What does {animal} eat?", f"What kind of food does {animal} live on?"]),
                   f"{cap(animal)} mostly eats {food}.")
        if sound != "-":
            yield pair(rng.choice([f"What sound does {animal} make?", f"How does {animal} sound?"]),
                       f"{cap(animal)} {sound}.")


def worker_pairs(rng):
    """People and what they do."""
    for who, does, place, tool in rows(WORKERS):
        yield pair(rng.choice([f"What does {who} do?", f"What is the job of {who}?"]), f"{cap(who)} {does}.")
        yield pair(rng.choice([f"What do you call a person who {does}?", f"Which worker {does}?"]),
                   f"A person who {does} is called {who}.")
        yield pair(rng.choice([f"Where does {who} usually work, and with what?", f"Where does {who} work?"]),
                   f"{cap(who)} usually works {place} and often uses {tool}.")


def other_pairs(rng):
    """Opposites, order, comparisons, times, true or false, odd one out."""
    for word, other, line in rows(OPPOSITES):
        yield pair(rng.choice([f'What is the opposite of "{word}"?', (f'Give the opposite of the word "{word}" and use '
                               "both words in a sentence.")]), f'The opposite of "{word}" is "{other}". {line}.')
    for first, second, why in rows(ORDER):
        two = rng.sample([first, second], 2)
        yield pair(rng.choice([f"What comes first: {two[0]} or {two[1]}?",
                               f"Put these two in the right order: {two[0]}, {two[1]}."]),
                   f"{cap(first)} comes first and {second} comes after it, because {why}.")
    for more, less, things in SCALES:
        for low, high in combinations(things.split(", "), 2):
            two, up = rng.sample([low, high], 2), rng.random() < 0.5
            best, rest, word = (high, low, more) if up else (low, high, less)
            if rng.random() < 0.6:
                yield pair(f"Which is {word}: {two[0]} or {two[1]}?", f"{cap(best)} is {word} than {rest}.")
    yield from (pair(ask, answer) for ask, answer in rows(TIMES))
    for truth, claim, why in rows(STATEMENTS):
        if rng.random() < 0.3:
            yield pair(f'Someone says: "{claim}." Is that right?',
                       f"{'Yes, that is right' if truth == 'T' else 'No, that is not right'}. {why}.")
        else:
            yield pair(rng.choice([f"True or false: {claim}.", f"Is this statement true or false? {claim}."]),
                       f"{'True' if truth == 'T' else 'False'}. {why}.")
    for odd, kind, what, others in rows(ODD):
        words = rng.sample([odd, *others.split(", ")], 4)
        yield pair(rng.choice([f"Which is the odd one out: {or_list(words)}?",
                               f"Which word does not belong with the others? {', '.join(words)}"]),
                   f"{cap(odd)} is the odd one out. The others are {kind}, but {odd} is {what}.")


def commonsense_pairs():
    """Everyday knowledge from the tables above."""
    rng = random.Random(SEED + 2)
    return [p for make in (object_pairs, cause_pairs, animal_pairs, worker_pairs, other_pairs) for p in make(rng)]


def main():
    """Write the three files."""
    for name, pairs in (("math", math_pairs()), ("code", code_pairs()), ("commonsense", commonsense_pairs())):
        pairs = unique(pairs)
        random.Random(SEED).shuffle(pairs)
        text = json.dumps(pairs, ensure_ascii=False, indent=1) + "\n"
        (HERE / f"{name}.json").write_text(text, encoding="utf-8", newline="\n")
        print(f"{name}.json: {len(pairs)} pairs, {len(text.encode()) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
