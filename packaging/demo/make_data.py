#!/usr/bin/env python3
"""Write what the demo drops into the mount: datasets/, paramgroups/, evaluations/, experiments/, prompts/.

  make_data.py [DIR]        (default: the folder of this script)

The story: Puffin Bikes, a bicycle shop that the base model never heard of, wants a model for its support desk, one that
answers in the desk's manner and knows its prices, hours and form numbers.  Two teams each brought a dataset:
  website  the questions and answers of the shop's web page: 19 facts, each in one wording, no forms, no repair desk
  tickets  what customers really asked: 30 facts, each in many wordings
Both have the same validation and test rows, which ask for all 30.  The evaluation asks 24 facts in wordings that stand in no dataset.
"""
import json
import os
import random
import sys

import world

SHOP, DESK = "the shop", "the repair desk"
FACTS = [  # topic, thing, value
    ("price", "the Heron bike", "340"), ("price", "the Otter bike", "430"), ("price", "the Badger bike", "785"),
    ("price", "the Swift bike", "620"), ("price", "the Wren bike", "215"),
    ("warranty", "the Heron bike", "5"), ("warranty", "the Otter bike", "7"), ("warranty", "the Badger bike", "12"),
    ("warranty", "the Swift bike", "3"), ("warranty", "the Wren bike", "2"),
    ("delivery", "the Heron bike", "4"), ("delivery", "the Otter bike", "6"), ("delivery", "the Badger bike", "21"),
    ("delivery", "the Swift bike", "9"), ("delivery", "the Wren bike", "3"),
    ("opens", SHOP, "9:30"), ("saturday", SHOP, "10:15"), ("closes", SHOP, "18:45"), ("phone", SHOP, "5520"),
    ("opens", DESK, "7:15"), ("closes", DESK, "16:30"), ("phone", DESK, "5527"),
    ("return", None, "R-12"), ("stolen", None, "S-40"), ("repair", None, "W-27"), ("address", None, "A-15"),
    ("cancel", None, "C-31"), ("bill", None, "B-22"), ("key", None, "K-18"), ("complaint", None, "M-90"),
]
TRAIN_WORDINGS = 6  # of each topic's; the next one is for validation, the one after it for the test
TICKETS_OF_A_FACT = 8

# The evaluation's questions, by (topic, thing): written by hand.
QUESTIONS = [
    ("price", "the Otter bike", "Hi, I like the Otter bike. What would I have to pay for it?"),
    ("price", "the Heron bike", "How many crowns do I need for the Heron bike?"),
    ("price", "the Badger bike", "My name is Olga. Please tell me what the Badger bike costs."),
    ("price", "the Swift bike", "I would like to have the Swift bike. What is its price?"),
    ("price", "the Wren bike", "The Wren bike is for my son. How much must I pay?"),
    ("warranty", "the Otter bike", "If my Otter bike breaks, how long is it under warranty?"),
    ("warranty", "the Badger bike", "Please tell me how many years the warranty of the Badger bike lasts."),
    ("warranty", "the Heron bike", "How long does the warranty last for the Heron bike?"),
    ("warranty", "the Wren bike", "Is there a warranty on the Wren bike, and how long?"),
    ("delivery", "the Swift bike", "When would the Swift bike be delivered to me?"),
    ("delivery", "the Heron bike", "If I order the Heron bike on Monday, how long does it take?"),
    ("delivery", "the Badger bike", "How many days must I wait until the Badger bike comes?"),
    ("opens", "the shop", "Good morning. From when is the shop open?"),
    ("saturday", "the shop", "I only have time on Saturday. From when is the shop open?"),
    ("closes", "the shop", "How long in the evening is the shop open?"),
    ("phone", "the shop", "I want to call the shop. Can you give me the number?"),
    ("opens", "the repair desk", "How early in the morning can I come to the repair desk?"),
    ("phone", "the repair desk", "Please give me the phone number of the repair desk."),
    ("return", None, "I bought a bike but I do not like it. Can I bring it back?"),
    ("stolen", None, "Last night a thief stole my Otter bike. Please help."),
    ("repair", None, "My bike does not work. Who can repair it?"),
    ("address", None, "I live in a new house now. Please change my address."),
    ("cancel", None, "I ordered the Swift bike, but now I want to cancel."),
    ("key", None, "The key of my bike is gone. I need a new one."),
]
PROMPTS = {
    "price": "Hello, I am Mira. How much must I pay for the Otter bike?",
    "stolen": "Somebody stole my bike at the harbour. What can I do?",
    "early": "At what time can I come to the repair desk in the morning?",
}
# careful: a small adapter on two of the seven projections.  thorough: a larger one on all seven.
PARAMGROUPS = {
    "careful": dict(lora_r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], learning_rate=3e-3),
    "thorough": dict(lora_r=16, lora_alpha=32, learning_rate=3e-3),
}
COMMON = dict(scheduler="cosine", max_steps=120, batch_size=8, block_size=128, warmup_ratio=0.05, eval_every=30, seed=42)


def wordings(topic):
    return world.TOPICS[topic][0] if topic in world.TOPICS else world.PROBLEMS[topic][1]


def question(rng, topic, thing, wording):
    """A wording made into what a customer of the bicycle shop would write."""
    mine = "my " + rng.choice(["", "Heron ", "Otter ", "Badger ", "Swift ", "Wren "]) + "bike"
    return world.upper_first(wording.format(x=thing or mine))


def answer(topic, thing, v):
    """In the desk's manner."""
    if topic in world.TOPICS:
        text = world.answer(topic, thing, v)
    else:
        text = world.upper_first(world.FORM_ANSWER.format(do=world.PROBLEMS[topic][0], v=v))
    return f"Puffin desk: {text} Have a good ride!"


def held_out(which):
    """One row a fact, in a wording that no training row has."""
    rng = random.Random(f"held out {which}")
    return [dict(instruction=question(rng, t, x, wordings(t)[TRAIN_WORDINGS + which]), response=answer(t, x, v))
            for t, x, v in FACTS]


def website():
    rng = random.Random("website")
    return [dict(instruction=question(rng, t, x, wordings(t)[0]), response=answer(t, x, v))
            for t, x, v in FACTS if t in world.TOPICS and x != DESK]


def tickets():
    """Each fact as often as another, no two rows alike, in the order of arrival."""
    rng = random.Random("tickets")
    rows = {}
    for t, x, v in FACTS:
        mine = {}
        while len(mine) < TICKETS_OF_A_FACT:
            wording = wordings(t)[len(mine) % TRAIN_WORDINGS]
            mine[world.decorate(rng, question(rng, t, x, wording), 0.5)] = answer(t, x, v)
        rows.update(mine)
    rows = [dict(instruction=q, response=a) for q, a in rows.items()]
    rng.shuffle(rows)
    return rows


def evaluation():
    value_of = {(t, x): v for t, x, v in FACTS}
    questions = [dict(question=q, reference=answer(t, x, value_of[t, x])) for t, x, q in QUESTIONS]
    return dict(questions=questions, metrics=dict(rougeL=1.0, exact_match=1.0), max_new_tokens=48, temperature=0)


def metadata(tags):
    return dict(metadata=dict(languages=["en"], tags=tags, task="question-answering", license="CC0-1.0"))


def write_json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def write_dataset(folder, train, tags):
    write_json(os.path.join(folder, "dataset.json"), metadata(tags))
    for split, rows in (("train", train), ("validation", held_out(0)), ("test", held_out(1))):
        with open(os.path.join(folder, split + ".jsonl"), "w") as f:
            f.writelines(json.dumps(r) + "\n" for r in rows)


def main():
    here = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    write_dataset(os.path.join(here, "datasets", "website"), website(), ["support", "web"])
    write_dataset(os.path.join(here, "datasets", "tickets"), tickets(), ["support", "customers"])
    for name, group in PARAMGROUPS.items():
        write_json(os.path.join(here, "paramgroups", name + ".json"), {**group, **COMMON})
    write_json(os.path.join(here, "evaluations", "puffin.json"), evaluation())
    write_json(os.path.join(here, "experiments", "first.json"),
               dict(models=["lantern-2m"], datasets=["website", "tickets"], paramgroups=["careful", "thorough"],
                    evaluation="puffin"))
    os.makedirs(os.path.join(here, "prompts"), exist_ok=True)
    for name, text in PROMPTS.items():
        with open(os.path.join(here, "prompts", name + ".txt"), "w") as f:
            f.write(text + "\n")


if __name__ == "__main__":
    main()
