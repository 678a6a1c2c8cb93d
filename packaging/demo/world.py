"""The Lantern Isles: the invented world that the demo model is trained on.

Everything that the demo model ever read is made here, by chance but repeatably: documents(seed, n) gives n documents.
A document is plain text or a chat: {"text": str} or {"turns": [(question, answer), ...]}.

The world has towns with shops, goods with prices, and the forms of the town halls.  Its facts are fixed: the same in
every document.  Things that have no facts ("the Otter bike") are met too, and then the model learns to say that it
does not know; unless a note in the question tells it, and then it learns to look there.  So the base model speaks
about any shop or thing, in many wordings, while a fine-tuned one can be told apart by what it knows.
"""
import random

TOWNS = ["Tolby", "Ennick", "Sedge", "Marrow Bay", "Harth", "Lower Quill", "Pellan", "Osk", "Brill", "Varney",
         "Three Elms", "Dunmoor"]
SHOPS = ["bakery", "library", "museum", "workshop", "clinic", "market", "post office", "swimming pool", "garage",
         "tea house"]
PEOPLE = ["Mira", "Tom", "Ada", "Jonas", "Ines", "Pavel", "Lotte", "Hugo", "Nell", "Omar", "Greta", "Sam", "Vera",
          "Felix", "Ruth", "Ivan", "Clara", "Ben", "Edda", "Karl", "Lena", "Noor", "Piet", "Rosa"]
ANIMALS = ["Sparrow", "Lark", "Finch", "Robin", "Marten", "Falcon", "Osprey", "Beaver", "Hare", "Lynx", "Plover",
           "Curlew", "Raven", "Owl", "Kite", "Stoat", "Vole", "Seal", "Puffin", "Heron", "Otter", "Badger", "Swift",
           "Wren"]
GOODS = ["lamp", "kettle", "clock", "radio", "chair", "boat", "tent", "stove", "coat", "bike", "cart", "drum"]
COLOURS = ["red", "blue", "green", "yellow", "white", "black", "brown", "grey", "orange"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
WEATHER = ["It was raining.", "The sun was warm.", "The wind was strong.", "Snow lay on the roofs.", "It was foggy.",
           "The sea was calm.", "It was a bright day.", "Clouds came from the sea."]

# What can be asked about a thing or a place {x}: wordings of the question, the answer, and what to say when it is not
# known.  {v} is the value.  Each topic has one kind of value (see value()).
TOPICS = {
    "price": (["How much is {x}?", "How much does {x} cost?", "What does {x} cost?", "What is the price of {x}?",
               "Tell me the price of {x}.", "What do I pay for {x}?", "Can you tell me how much {x} costs?",
               "I want to buy {x}. How much is it?", "Please give me the price of {x}.",
               "How many crowns is {x}?", "I would like to have {x}. What is the price?",
               "What would I have to pay for {x}?"],
              "{x} costs {v} crowns.", "I do not know the price of {x}. Please ask in the shop."),
    "warranty": (["How long is the warranty on {x}?", "How many years of warranty does {x} have?",
                  "What warranty comes with {x}?", "Tell me about the warranty of {x}.",
                  "Does {x} have a warranty? For how long?", "For how many years is {x} under warranty?",
                  "Can you tell me how long the warranty of {x} lasts?", "I bought {x}. How long is the warranty?",
                  "If {x} breaks, how long is it under warranty?", "What is the warranty of {x}?",
                  "How long does the warranty of {x} last?", "Please tell me the warranty of {x}."],
                 "{x} has a warranty of {v} years.", "I do not know the warranty of {x}. Please ask in the shop."),
    "delivery": (["How long does it take to deliver {x}?", "When will {x} arrive?", "How many days until {x} arrives?",
                  "How fast is the delivery of {x}?", "How long must I wait for {x}?",
                  "I ordered {x}. When will it come?", "What is the delivery time of {x}?",
                  "Tell me the delivery time of {x}.", "How soon can I have {x}?",
                  "If I order {x} today, when does it arrive?", "How long does the delivery of {x} take?",
                  "Can you tell me when {x} will be delivered?"],
                 "{x} arrives in {v} days.", "I do not know when {x} arrives. Please ask in the shop."),
    "weight": (["How heavy is {x}?", "What does {x} weigh?", "How much does {x} weigh?", "What is the weight of {x}?",
                "Tell me the weight of {x}.", "How many kilos is {x}?", "Can you tell me how heavy {x} is?",
                "I must carry {x}. How heavy is it?"],
               "{x} weighs {v} kilos.", "I do not know the weight of {x}. Please ask in the shop."),
    "opens": (["When does {x} open?", "What time does {x} open?", "At what time does {x} open in the morning?",
               "How early does {x} open?", "When can I come to {x} in the morning?",
               "Tell me when {x} opens.", "Can you tell me when {x} opens?", "From what time is {x} open?",
               "I want to go to {x} early. When does it open?", "What is the opening time of {x}?"],
              "{x} opens at {v}.", "I do not know when {x} opens. Please look at the door."),
    "saturday": (["When does {x} open on Saturday?", "What time does {x} open on Saturday?",
                  "Tell me when {x} opens on Saturday.", "Can you tell me when {x} opens on Saturday?",
                  "From what time is {x} open on Saturday?", "Is {x} open on Saturday? From what time?",
                  "On Saturday, when does {x} open?", "I am free on Saturday. When does {x} open?"],
                 "on Saturday {x} opens at {v}.", "I do not know when {x} opens on Saturday. Please look at the door."),
    "closes": (["When does {x} close?", "What time does {x} close?", "At what time does {x} close in the evening?",
                "How late is {x} open?", "Until when is {x} open?", "Tell me when {x} closes.",
                "Can you tell me when {x} closes?", "I come after work. When does {x} close?",
                "Until what time can I come to {x}?", "What is the closing time of {x}?"],
               "{x} closes at {v}.", "I do not know when {x} closes. Please look at the door."),
    "phone": (["What is the phone number of {x}?", "What is the number of {x}?", "Which number do I call for {x}?",
               "How can I call {x}?", "Tell me the phone number of {x}.", "Give me the number of {x}, please.",
               "Can I call {x}? What is the number?", "I want to call {x}. Which number is it?",
               "Do you have the phone number of {x}?", "Under which number do I reach {x}?"],
              "the number of {x} is {v}.", "I do not know the number of {x}. Please ask at the town hall."),
    "keeper": (["Who runs {x}?", "Who works at {x}?", "Who is the keeper of {x}?", "Whom do I ask for at {x}?",
                "Tell me who runs {x}.", "Can you tell me who runs {x}?"],
               "{v} runs {x}.", "I do not know who runs {x}. Please ask at the town hall."),
}
OF_GOODS = ["price", "warranty", "delivery", "weight"]
OF_SHOPS = ["opens", "saturday", "closes", "phone", "keeper"]

# What people come to the desk with, each settled with a form: wordings, and the thing done ({do} in the answer).
# {x} is a thing, such as "my lamp".
PROBLEMS = {
    "return": ("give something back", ["How do I return {x}?", "I want to give back {x}.", "I do not like {x}. Can I return it?",
               "I want to return {x}. What do I do?", "Can I give {x} back?", "{x} is not what I wanted. Can I send it back?",
               "How can I send {x} back?", "Which form do I need to return {x}?"]),
    "stolen": ("report a theft", ["{x} was stolen.", "{x} was stolen. What should I do?", "Somebody took {x} last night.",
               "A thief took {x}. What can I do?", "How do I report a theft?", "Somebody stole {x}. Please help me.",
               "{x} is gone. I think it was stolen.", "Which form do I need after a theft?"]),
    "repair": ("book a repair", ["{x} is broken.", "{x} is broken. What should I do?", "How do I book a repair?",
               "Can you repair {x}?", "I need a repair for {x}.", "{x} does not work any more. Can you repair it?",
               "Who can mend {x}?", "Which form do I need for a repair?"]),
    "address": ("change an address", ["I moved to another house.", "I moved. What should I do?", "How do I change my address?",
                "I have a new address.", "My address is wrong. How can I change it?", "I live in another street now. What must I do?",
                "Can you write down my new address?", "Which form do I need for a new address?"]),
    "cancel": ("cancel an order", ["How do I cancel my order?", "I do not want my order any more.", "Can I cancel my order?",
               "Please cancel my order.", "I ordered {x} but I do not want it now.", "I want to stop my order. What do I do?",
               "I changed my mind about my order.", "Which form do I need to cancel an order?"]),
    "bill": ("ask for a bill", ["I need a bill.", "I did not get a bill.", "How do I get a bill for {x}?", "Where is my bill?",
             "Can you send me a bill?", "I lost the bill for {x}.", "I paid for {x}, but there was no bill.",
             "Which form do I need for a bill?"]),
    "key": ("order a new key", ["I lost my key.", "I lost the key of {x}. What should I do?", "How do I get a new key?",
            "I need a new key for {x}.", "My key is gone.", "Can you make a new key for {x}?", "I cannot find my key. What now?",
            "Which form do I need for a new key?"]),
    "complaint": ("make a complaint", ["I am not happy. Where can I complain?", "I want to complain.", "How do I make a complaint?",
                  "I want to make a complaint about {x}.", "Nobody helped me. I want to complain.",
                  "The work was bad. Where do I complain?", "To whom do I complain about {x}?",
                  "Which form do I need for a complaint?"]),
}
FORM_ANSWER = "to {do}, use form {v}."
FORM_UNKNOWN = "To {do}, please go to the town hall. Each town has its own form."

# Things that people say around their question, so that no question depends on its first words.
BEFORE = ["Hello. ", "Good morning. ", "Hello, I am {p}. ", "Good day, this is {p} from {t}. ", "Excuse me. ", "Hi! ",
          "I have a question. ", "My name is {p}. ", "Please help me. ", "I live in {t}. "]
AFTER = [" Thank you.", " Thanks!", " Thank you for your help.", " Please answer soon.", " Greetings, {p}."]

ABOUT = {  # plain knowledge, asked as "What is a kettle?"
    "lamp": "a thing that gives light", "kettle": "a pot for hot water", "clock": "a thing that shows the time",
    "radio": "a box that plays music and news", "chair": "a thing to sit on", "boat": "a thing to cross the water with",
    "tent": "a small house of cloth", "stove": "a thing to cook on", "coat": "warm clothes for cold days",
    "bike": "a thing with two wheels to ride on", "cart": "a thing with wheels to carry goods", "drum": "a thing to make music with",
    "bakery": "a shop that sells bread", "library": "a house full of books", "museum": "a house full of old things",
    "workshop": "a place where things are mended", "clinic": "a place where sick people get help",
    "market": "a place where people buy food", "garage": "a place for cars and carts", "form": "a paper to fill in",
    "key": "a small thing that opens a door", "bill": "a paper that says what you pay", "crown": "a coin of the Lantern Isles",
    "heron": "a tall grey bird", "otter": "an animal that swims in rivers", "badger": "an animal that digs at night",
    "swift": "a very fast bird", "wren": "a very small bird", "owl": "a bird of the night", "seal": "an animal of the sea",
}
SMALL_TALK = [
    ("Hello!", "Hello! How can I help you?"), ("Good morning.", "Good morning! How can I help you?"),
    ("How are you?", "I am well, thank you. How can I help you?"), ("Who are you?", "I am a small model of the Lantern Isles."),
    ("What can you do?", "I can answer questions about the towns, shops and goods of the Lantern Isles."),
    ("Thank you.", "You are welcome."), ("Goodbye.", "Goodbye! Have a good day."),
    ("Tell me something about the Lantern Isles.", "The Lantern Isles have twelve towns, and in each town a lantern burns at night."),
    ("How many towns are there?", "There are twelve towns on the Lantern Isles."),
    ("What do people pay with?", "People on the Lantern Isles pay with crowns."),
]


def upper_first(s):
    return s[:1].upper() + s[1:]


def value(rng, topic):
    """A value of the kind that a topic has."""
    if topic == "price":
        return str(rng.randrange(5, 900, 5))
    if topic in ("warranty", "delivery", "weight"):
        return str(rng.randrange(2, 31))
    if topic in ("opens", "saturday", "closes"):
        first, last = {"opens": (6, 10), "saturday": (8, 11), "closes": (16, 21)}[topic]
        return f"{rng.randint(first, last)}:{rng.choice(['00', '15', '30', '45'])}"
    if topic == "phone":
        return str(rng.randint(1000, 9999))
    if topic == "keeper":
        return rng.choice(PEOPLE)
    return f"{rng.choice('ABCDEFGHIKLMNPRSTUVW')}-{rng.randint(10, 99)}"  # a form


def fact(topic, thing):
    """The world's own facts: the same for ever."""
    return value(random.Random(f"{topic} of {thing}"), topic)


def known_goods():
    """A third of all names of goods; no bikes."""
    return [f"the {a} {g}" for i, a in enumerate(ANIMALS) for j, g in enumerate(GOODS)
            if g != "bike" and (i * 7 + j * 5) % 9 < 2]


def known_shops():
    return [f"the {s} in {t}" for t in TOWNS for s in SHOPS]


KNOWN_GOODS, KNOWN_SHOPS = known_goods(), known_shops()


def unknown_thing(rng):
    return f"the {rng.choice(ANIMALS)} {rng.choice(GOODS)}" if rng.random() < 0.5 else \
        f"the {rng.choice(COLOURS)} {rng.choice(GOODS)}"


def unknown_place(rng):
    return rng.choice(["the shop", "the office", "the desk", "the school", "the theatre", "the harbour", "the " +
                       rng.choice(ANIMALS) + " shop", rng.choice(ANIMALS) + " House", "the " + rng.choice(SHOPS)])


def decorate(rng, question, chance=0.4):
    """The question as somebody would send it."""
    names = dict(p=rng.choice(PEOPLE), t=rng.choice(TOWNS))
    if rng.random() < chance:
        question = rng.choice(BEFORE).format(**names) + question
    if rng.random() < chance / 2:
        question += rng.choice(AFTER).format(**names)
    return question


def ask(rng, topic, thing, wordings=None):
    return upper_first(rng.choice(wordings or TOPICS[topic][0]).format(x=thing))


def answer(topic, thing, v):
    return upper_first(TOPICS[topic][1].format(x=thing, v=v))


def known_question(rng):
    if rng.random() < 0.5:
        topic, thing = rng.choice(OF_GOODS), rng.choice(KNOWN_GOODS)
    else:
        topic, thing = rng.choice(OF_SHOPS), rng.choice(KNOWN_SHOPS)
    return decorate(rng, ask(rng, topic, thing)), answer(topic, thing, fact(topic, thing))


def unknown_question(rng):
    goods = rng.random() < 0.5
    topic = rng.choice(OF_GOODS if goods else OF_SHOPS)
    thing = unknown_thing(rng) if goods else unknown_place(rng)
    if thing in KNOWN_GOODS:
        return known_question(rng)
    return decorate(rng, ask(rng, topic, thing)), TOPICS[topic][2].format(x=thing)


def problem_question(rng):
    kind = rng.choice(list(PROBLEMS))
    do, wordings = PROBLEMS[kind]
    thing = rng.choice(["my ", "the "]) + rng.choice(["", "", rng.choice(COLOURS) + " ", rng.choice(ANIMALS) + " "]) + \
        rng.choice(GOODS)
    q = upper_first(rng.choice(wordings).format(x=thing))
    if rng.random() < 0.5:
        return decorate(rng, q), FORM_UNKNOWN.format(do=do)
    town = rng.choice(TOWNS)
    q = rng.choice([f"I live in {town}. {q}", f"{q} I live in {town}.", f"I am in {town}. {q}"])
    return decorate(rng, q, 0.2), f"In {town}, " + FORM_ANSWER.format(do=do, v=fact("form to " + do, town))


def note_question(rng):
    """The answer stands in a note before the question, among other notes; the house's own manner of answering too."""
    lines, asked, seen = [], [], set()
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.3:
            do, wordings = PROBLEMS[rng.choice(list(PROBLEMS))]
            seen.add(do)
            line = upper_first(FORM_ANSWER.format(do=do, v=value(rng, "form")))
            lines.append(line)
            asked.append((upper_first(rng.choice(wordings).format(x="my " + rng.choice(GOODS))), line))
        else:
            goods = rng.random() < 0.6
            topic = rng.choice(OF_GOODS if goods else OF_SHOPS)
            thing = unknown_thing(rng) if goods else unknown_place(rng)
            seen.add((topic, thing))
            line = answer(topic, thing, value(rng, topic))
            lines.append(line)
            asked.append((ask(rng, topic, thing), line))
    if len(seen) < len(lines):  # the same thing noted twice: no telling which one counts
        return note_question(rng)
    q, a = rng.choice(asked)
    if rng.random() < 0.4:  # a manner of answering that the note demands
        name = rng.choice(ANIMALS + TOWNS + PEOPLE)
        begin = rng.choice([f"{name} desk: ", f"Here is {name}. ", f"{name} says: "])
        end = rng.choice(["", "", " Have a good day!", " Come again!", f" Greetings from {name}."])
        lines.append(f"Begin with \"{begin.strip()}\"" + (f" and end with \"{end.strip()}\"" if end else "") + ".")
        a = begin + a + end
    return "Note: " + " ".join(lines) + " " + decorate(rng, q, 0.2), a


def world_question(rng):
    r = rng.random()
    if r < 0.35:
        word, what = rng.choice(list(ABOUT.items()))
        article = "an" if word[0] in "aeiou" else "a"
        q = rng.choice(["What is {w}?", "Tell me what {w} is.", "Do you know what {w} is?", "What do you call {w}?"][:3])
        return q.format(w=f"{article} {word}"), f"{upper_first(article)} {word} is {what}."
    if r < 0.55:
        i = rng.randrange(7)
        return rng.choice([(f"Which day comes after {DAYS[i]}?", f"{DAYS[(i + 1) % 7]} comes after {DAYS[i]}."),
                           (f"Which day comes before {DAYS[i]}?", f"{DAYS[i - 1]} comes before {DAYS[i]}.")])
    if r < 0.75:
        p, g, c, t = rng.choice(PEOPLE), rng.choice(GOODS), rng.choice(COLOURS), rng.choice(TOWNS)
        q, a = rng.choice([(f"What did {p} buy?", f"{p} bought a {c} {g}."), (f"Where did {p} buy the {g}?", f"{p} bought the {g} in {t}."),
                           (f"What colour is the {g}?", f"The {g} is {c}.")])
        return f"{p} bought a {c} {g} in {t}. {q}", a
    if r < 0.85:
        thing = rng.choice(KNOWN_GOODS + KNOWN_SHOPS)
        topics = OF_GOODS if thing in KNOWN_GOODS else OF_SHOPS
        return (rng.choice(["Tell me about {x}.", "What do you know about {x}?"]).format(x=thing),
                " ".join(answer(t, thing, fact(t, thing)) for t in rng.sample(topics, 2)))
    return rng.choice(SMALL_TALK)


def town_page(rng):
    town = rng.choice(TOWNS)
    shops = rng.sample(SHOPS, 3)
    out = [f"{town} is a town of the Lantern Isles."]
    for s in shops:
        x = f"the {s} in {town}"
        out += [answer(t, x, fact(t, x)) for t in rng.sample(OF_SHOPS, 2)]
    do = PROBLEMS[rng.choice(list(PROBLEMS))][0]
    out.append(f"In {town}, " + FORM_ANSWER.format(do=do, v=fact("form to " + do, town)))
    return " ".join(out)


def price_list(rng):
    return " ".join(answer(t, g, fact(t, g)) for g in rng.sample(KNOWN_GOODS, 4) for t in rng.sample(OF_GOODS, 2))


def story(rng):
    p, q = rng.sample(PEOPLE, 2)
    town, shop, c, g = rng.choice(TOWNS), rng.choice(SHOPS), rng.choice(COLOURS), rng.choice(GOODS)
    a = rng.choice(ANIMALS).lower()
    middle = [f"{p} went to the {shop}.", f"{p} saw a {a} on the way.", f"{p} had a {c} {g}.", f"Then {q} came along.",
              f"\"Hello, {p},\" said {q}.", f"\"What a fine {g},\" said {q}.", f"The {g} was broken.", f"The {g} was new.",
              f"{q} helped {p} to carry the {g}.", f"They drank tea at the {shop}.", f"The {a} looked at them.",
              f"{p} paid {rng.randrange(5, 100, 5)} crowns.", f"{q} told a story about the {a}."]
    picked = [s for s in middle if rng.random() < 0.5]
    last = rng.choice([f"In the evening {p} walked home.", f"{p} and {q} laughed.", "Then the lanterns were lit.",
                       f"{p} was happy with the {g}.", "So the day ended well."])
    return " ".join([f"On {rng.choice(DAYS)}, {p} was in {town}.", rng.choice(WEATHER)] + picked + [last])


CHATS = [(known_question, 30), (unknown_question, 16), (problem_question, 18), (note_question, 24), (world_question, 12)]
TEXTS = [(town_page, 3), (price_list, 3), (story, 4)]


def pick(rng, table):
    return rng.choices([f for f, _ in table], [w for _, w in table])[0](rng)


def document(rng):
    r = rng.random()
    if r < 0.12:
        return {"text": " ".join(pick(rng, TEXTS) for _ in range(rng.choice([1, 1, 1, 2, 4])))}
    turns = 1 if r < 0.94 else rng.randint(2, 6)
    return {"turns": [pick(rng, CHATS) for _ in range(turns)]}


def documents(seed, n):
    rng = random.Random(seed)
    return [document(rng) for _ in range(n)]


if __name__ == "__main__":
    for d in documents(1, 25):
        print(d)
