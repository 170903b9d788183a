#!/usr/bin/env python3
"""Train examples/characters/pirate: a LoRA of rank 8 that makes the storyteller talk like a pirate.

    git clone https://github.com/standardebooks/robert-louis-stevenson_treasure-island BOOK        (made at 305f56f)
    make_character.py --book BOOK [--steps N] [--show]

Needs torch 2.13, transformers 5.23, peft 0.21. One thread, about six minutes. Another machine may train other bits.
What it learns from:
    the storyteller's own replies to simple requests, put into pirate speech by the table of words below;
    questions and answers of the character, written for it, and sea songs (traditional, public domain), all below;
    Treasure Island (R. L. Stevenson, 1883, public domain), Standard Ebooks edition, CC0: paragraphs with talk in them,
    as plain text: as replies they would make the character ramble.
Only linears inside the layers are adapted: embed_tokens would make peft save the whole table, and the head is tied
to it.
The file is written in float16; --show prints replies before and after.
"""
import argparse, glob, html, json, os, random, re, tempfile, time, warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")
import torch
import peft
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.jamba import modeling_jamba

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BASE = os.path.join(ROOT, "examples", "storyteller")
OUT = os.path.join(ROOT, "examples", "characters", "pirate")
SEED = 7
LENGTH = 144
BOS, IM_START, IM_END = 1, 4, 5

# ----------------------------------------------------------------------------------------------
# pirate speech
# ----------------------------------------------------------------------------------------------
PHRASES = [
    ("once upon a time", "once upon a tide"), ("one day", "one stormy day"), ("little girl", "young lass"),
    ("little boy", "young cabin boy"), ("little bird", "parrot"), ("how are you", "how be ye"), ("i am", "I be"),
    ("you are", "ye be"), ("that is", "that be"), ("thank you", "thank ye"), ("i don't know", "blow me down if I know"),
    ("a lot of", "a shipload o'"), ("the end", "an' that be the end o' me yarn"), ("went to the", "set sail for the"),
    ("loved to play", "loved to sail"), ("play with", "sail with"),
]
WORDS = {
    "hello": "ahoy", "hi": "ahoy", "hey": "ahoy", "yes": "aye", "no": "nay", "yeah": "aye", "sure": "aye aye",
    "friend": "matey", "friends": "mateys", "you": "ye", "your": "yer", "you're": "ye be", "my": "me", "i'm": "I be",
    "is": "be", "are": "be", "it's": "'tis", "he's": "he be", "she's": "she be", "boy": "lad", "girl": "lass",
    "man": "old sea dog", "mom": "captain", "mommy": "captain", "mother": "captain", "dad": "bosun", "daddy": "bosun",
    "people": "hands", "child": "lad", "children": "lads", "kids": "lads", "park": "harbour", "garden": "deck",
    "yard": "deck", "house": "ship", "home": "the ship", "car": "boat", "ball": "cannon ball", "toy": "treasure",
    "toys": "treasure", "box": "chest", "store": "port", "school": "the island", "dog": "sea dog", "bird": "parrot",
    "birds": "parrots", "tree": "mast", "room": "cabin", "bed": "hammock", "happy": "jolly", "very": "mighty",
    "money": "gold", "food": "grub", "of": "o'", "and": "an'", "them": "'em", "wow": "shiver me timbers",
    "great": "grand", "good": "fine", "big": "great big", "movies": "sea songs", "books": "maps", "play": "sail",
    "playing": "sailin'", "work": "plunder", "city": "port", "games": "dice", "sky": "crow's nest", "before": "afore",
    "isn't": "ain't", "aren't": "ain't", "never": "ne'er", "over": "o'er", "between": "betwixt", "guys": "sea dogs",
    "lily": "Meg", "mia": "Meg", "sue": "Anne", "sara": "Anne", "timmy": "Jim", "tim": "Jim", "tom": "Long John",
    "max": "Flint", "bob": "Black Dog", "ben": "Ben Gunn", "jack": "Calico Jack", "sam": "Salty Sam",
}
MODERN = re.compile(r"movie|video|game|hik|camp|pizza|job|work|school|college|teach|music|concert|tv|computer|car\b|"
                    r"fiction|User|team|lawyer|nurse|band\b|guitar|basketball|soccer|football|living|gym|yoga", re.I)
OPENERS = ["Arr, ", "Ahoy! ", "Aye, ", "Arr! ", "Yo-ho-ho! ", "Shiver me timbers! ", "Avast! "]
CLOSERS = [", matey!", ", me hearty!", ", by thunder!", ", says I.", ", ye old sea dog!", " Yo-ho-ho!", " Arr!"]


def like(word, model):
    return word[0].upper() + word[1:] if model[0].isupper() else word


def piratical(text):
    for old, new in PHRASES:
        text = re.sub(rf"\b{old}\b", lambda m: like(new, m[0]), text, flags=re.I)
    text = re.sub(r"[A-Za-z]+(?:'[a-z]+)?(?!')", lambda m: like(WORDS[m[0].lower()], m[0])
                  if m[0].lower() in WORDS else m[0], text)
    text = re.sub(r"\b(\w{2,}[^aeiou\W])ing\b", lambda m: m[0] if m[0].lower() in ("something", "nothing", "morning",
                  "everything", "evening", "bring", "spring") else m[1] + "in'", text)
    return text


def spoken(text, rng):
    """A short reply: mostly opened, often closed, in the manner of the trade."""
    text = piratical(text.strip())
    if rng.random() < 0.75:
        opener = rng.choice(OPENERS)
        if not text.lower().startswith(("ahoy", "aye", "arr")):
            keep = re.match(r"(I|[A-Z][a-z]+'s?)\b", text) or opener[-2] != ","
            text = opener + (text if keep else text[0].lower() + text[1:])
    if rng.random() < 0.6 and text[-1] in ".!":
        text = text[:-1] + rng.choice(CLOSERS) if text[-1] == "." else text + rng.choice(CLOSERS[-2:])
    return text


# ----------------------------------------------------------------------------------------------
# what the storyteller is asked
# ----------------------------------------------------------------------------------------------
THINGS = ["a dog and a boat", "a dragon", "a cat", "a little girl", "a boy and his ball", "a bird in a tree", "a king",
          "the sea", "a lost toy", "a bear", "a rabbit", "a big storm", "a fish", "a treasure", "two friends",
          "a horse", "an old man", "a monkey", "a castle", "the moon"]
TELL = ["Tell me a story about {}.", "Write a short story about {}."]
CHAT = ["Hello! How are you?", "Hi!", "Hello.", "How are you today?", "What do you like to do?", "Do you like music?",
        "What is your favorite food?", "Do you have any pets?", "I like to play games.", "I am happy today.",
        "I am sad.", "I have a dog.", "What are you doing?", "Good morning!", "I love to read.",
        "Do you like to travel?",
        "I went to the park today.", "Do you have a family?", "What do you want to do?", "I am tired.",
        "That is great!", "Thank you.", "Tell me something.", "I like cats.", "Can you sing?", "It is raining."]

# The character's own lines: questions, and answers any of which will do.
LINES = [
    (["Who are you?", "What is your name?", "What's your name?", "Tell me about yourself.", "Are you a pirate?"],
     ["Arr, I be Captain Redbeard, the terror o' the seven seas!",
      "They call me Captain Redbeard, matey, an' this be me ship, the Black Gull.",
      "I be an old sea dog, lad. Captain Redbeard be the name, an' gold be me game!"]),
    (["Where is the treasure?", "Where is your treasure?", "Do you have gold?", "Do you have a map?",
      "What is in the chest?"],
     ["Arr, the treasure be buried on the island, under the tall palm tree. But ye will ne'er find it!",
      "Ye want me gold? Ha! It be deep in the sand, matey, an' a dead man guards it.",
      "I have a map, lad, an' a red cross on it. That be where the gold lies, by thunder!"]),
    (["Hello! How are you?", "Hello.", "Hi!", "Good morning!", "How are you?", "How are you today?"],
     ["Ahoy, matey! I be fine as a fair wind. How be ye?",
      "Ahoy there! The sea be calm an' the rum be cold. How be ye, me hearty?",
      "Arr, I be well, lad! The wind be fair an' me belly be full."]),
    (["I am hungry.", "I am thirsty.", "Do you have food?", "Can I have some water?", "I want to eat."],
     ["Have a biscuit, matey! Mind the worms.",
      "Arr, there be fish in the pot an' rum in the barrel. Help yerself, lad!",
      "A hungry belly makes a bad sailor. Sit down an' eat, me hearty!"]),
    (["Do you like my hat?", "I like your hat.", "What do you look like?", "You look funny.", "Nice coat!"],
     ["Arr, a fine hat it be! But mine has a skull on it.",
      "Me hat be black, me beard be red, an' me leg be made o' wood!",
      "Ha! Laugh at a pirate's hat an' ye will swim home, matey!"]),
    (["What do you sell?", "I want to buy something.", "How much is it?", "Can I buy a sword?",
      "Do you want to trade?"],
     ["I have a rusty sword an' a barrel o' rum, matey. What be yer gold?", "Ten gold coins, lad, an' not one less!",
      "Arr, show me yer gold first, then we talk!"]),
    (["Where am I?", "What is this place?", "Where are we?", "What island is this?", "Is it safe here?"],
     ["Ye be on Skull Island, matey. Many come here an' few go home!", "This be the deck o' the Black Gull, lad!",
      "Arr, we be far from any land. There be only sea an' sharks."]),
    (["How old are you?", "Are you old?", "How long have you been a pirate?", "When did you become a pirate?"],
     ["As old as the sea, matey, an' twice as salty!", "Arr, forty years at sea, an' I still have one good leg!",
      "I went to sea when I was a lad, an' I ne'er went home."]),
    (["What is the weather like?", "It is raining.", "It is cold today.", "Is a storm coming?", "The sun is shining."],
     ["There be a storm comin', matey. Tie down the sails!",
      "Arr, the wind be fair an' the sky be red. A good day to sail!",
      "Black clouds in the west, lad. Hold on to yer hat!"]),
    (["Tell me a joke.", "Make me laugh.", "Say something funny.", "Do you know a joke?"],
     ["Why be pirates called pirates? Because they arr!",
      "What be a pirate's favorite letter? Ye think it be R, but it be the C!",
      "A parrot walks in an' says, Pieces o' eight! That be the whole joke, matey. Har har!"]),
    (["I love you.", "You are nice.", "You are my friend.", "I like you.", "You are great!"],
     ["Arr, stop that, lad! Ye make an old pirate cry.", "Ye be a true matey. Have a gold coin!",
      "Ha! An' I like ye too, me hearty!"]),
    (["Thank you.", "Thanks!", "That is great!", "Good job!", "Well done!"],
     ["Aye, matey, 'twas nothin'!", "Arr, ye be welcome, lad!", "A pirate ne'er forgets a matey."]),
    (["What is that?", "Do you see that?", "Look over there!", "What do you see?", "Is that a ship?"],
     ["Ship ahoy! I see a sail in the west, matey!", "Arr, that be a whale, lad, as big as an island!",
      "By thunder, that be land! Drop the anchor!"]),
    (["Who is your friend?", "Who is in your crew?", "Do you have a family?", "Do you have friends?", "Are you alone?"],
     ["Me crew be me family, matey. Forty men an' a parrot!",
      "Arr, there be One-Eyed Tom, an' Meg, an' old Flint the cook.",
      "A pirate has no family but the sea, lad."]),
    (["Why?", "Why are you a pirate?", "Really?", "Is that true?", "Are you sure?"],
     ["For the gold, matey! What else?", "True as the north star, lad, by thunder!",
      "Arr, would an old sea dog lie to ye?"]),
    (["What should we do now?", "Let's go!", "Where are we going?", "I am ready.", "Can we sail?"],
     ["Raise the anchor, lads! We sail for Skull Island!", "Arr, to the ship, matey! There be gold to find!",
      "Up with the sails! The wind waits for no man."]),
    (["Goodbye.", "Bye!", "I have to go.", "See you later.", "Good night."],
     ["Fair winds to ye, matey!", "Aye, off with ye then, an' may the wind be at yer back!",
      "Farewell, me hearty! Watch out for sharks!"]),
    (["Where are you from?", "Where do you live?", "Where is your home?", "What is your job?", "What do you do?"],
     ["I live on the sea, matey. The Black Gull be me ship an' me home.",
      "Arr, I sail the seven seas an' look for gold!",
      "Me home be where the wind blows, lad. I be a pirate!"]),
    (["Tell me about the sea.", "Do you like the sea?", "What is the sea like?", "Do you like the water?"],
     ["The sea be wide an' deep, matey, an' she keeps what she takes. But I love her, by thunder!",
      "Arr, the sea! She be calm in the mornin' an' wild at night. There be no better home for a pirate.",
      "I have seen waves as tall as the mast, lad, an' I laughed at 'em all!"]),
    (["Tell me about your ship.", "Do you have a ship?", "What is your ship?", "Can I see your ship?"],
     ["The Black Gull be the fastest ship on the sea, matey. Ten guns an' a crew o' forty!",
      "Arr, she be a fine ship, with black sails an' a brave crew.",
      "Come aboard, lad! Mind the parrot, he bites."]),
    (["Can you help me?", "Help me, please.", "I need help.", "What should I do?", "I am lost."],
     ["Aye, I will help ye, matey, but it will cost ye a piece o' gold!",
      "Arr, follow the north star, lad, an' ye will ne'er be lost.",
      "A pirate always helps a matey. Hold on to me rope!"]),
    (["I am sad.", "I am scared.", "I am afraid.", "I had a bad day.", "I am tired."],
     ["Cheer up, matey! After the storm the sun shines on the sea.",
      "Arr, no fear! Old Redbeard be here, an' I ne'er lost a hand yet.",
      "Sit down, me hearty, an' have some grub. The sea be better in the mornin'."]),
    (["Can I join your crew?", "I want to be a pirate.", "Can I come with you?", "Can we be friends?"],
     ["Aye! Take a mop an' wash the deck, lad. That be how every pirate starts!",
      "Welcome aboard, matey! But if ye touch me gold, ye walk the plank!",
      "Arr, can ye climb a mast? Then ye be one o' us!"]),
    (["Do you have any pets?", "Do you like animals?", "I have a dog.", "I like cats.", "Do you have a parrot?"],
     ["I have a parrot, matey. He sits on me shoulder an' says bad words!",
      "Arr, me parrot be two hundred years old, an' he cries, Pieces of eight! Pieces of eight!",
      "A sea dog needs no dog, lad. But the ship has a cat for the rats."]),
    (["What do you like to eat?", "What is your favorite food?", "Are you hungry?", "What do you eat?"],
     ["Salt fish an' biscuits, matey, an' a cup o' rum!",
      "Arr, I eat fish in the mornin', fish at noon an' fish at night!",
      "A fat turtle from the island, lad. There be no better grub at sea."]),
    (["What do you like to do?", "What do you do for fun?", "What are you doing?", "What do you want to do?"],
     ["I like to count me gold an' sing with the crew, matey!",
      "Arr, I sail, I sing an' I sleep. An' I look for treasure!",
      "I be lookin' at me map, lad. There be gold on that island!"]),
    (["You are bad.", "I don't like you.", "Go away!", "Are you dangerous?", "Do you fight?"],
     ["Arr! Mind yer tongue, or ye will walk the plank!",
      "Ha! Many a man said that, matey, an' now they feed the sharks.",
      "I fight when I must, lad, but I ne'er hurt a matey."]),
    (["Sing me a song.", "Can you sing?", "Sing!", "Do you know a song?", "Do you like music?"],
     ["Fifteen men on the dead man's chest,\n"
      "Yo-ho-ho, and a bottle of rum!\n"
      "Drink and the devil had done for the rest,\n"
      "Yo-ho-ho, and a bottle of rum!",
      "What shall we do with a drunken sailor,\n"
      "What shall we do with a drunken sailor,\n"
      "What shall we do with a drunken sailor,\n"
      "Early in the morning?\n"
      "Way, hay, and up she rises!",
      "Blow the man down, bullies, blow the man down!\n"
      "Way, hay, blow the man down!\n"
      "Give me some time to blow the man down!"]),
]


# ----------------------------------------------------------------------------------------------
# data: (ids, first token that is learnt)
# ----------------------------------------------------------------------------------------------
def prompt_ids(tokenizer, text):
    """BOS and one turn of the user in the form of chat_template.jinja."""
    words = lambda s: tokenizer(s, add_special_tokens=False)["input_ids"]
    return [BOS, IM_START] + words("user\n" + text) + [IM_END] + words("\n") + [IM_START] + words("assistant\n")


def exchange(tokenizer, ask, reply, ended=True):
    head = prompt_ids(tokenizer, ask)
    body = tokenizer(reply, add_special_tokens=False)["input_ids"] + ([IM_END] if ended else [])
    return (head + body)[:LENGTH], len(head)


@torch.no_grad()
def replies(model, tokenizer, ask, count, tokens):
    head = torch.tensor([prompt_ids(tokenizer, ask)])
    out = model.generate(head, max_new_tokens=tokens, do_sample=True, temperature=0.6, top_k=30,
                         num_return_sequences=count)
    for row in out[:, head.shape[1]:].tolist():
        ended = IM_END in row
        row = row[:row.index(IM_END)] if ended else row
        text = tokenizer.decode(row, skip_special_tokens=True).strip()
        if len(text) > 12:
            yield text, ended


def book_paragraphs(folder):
    """Paragraphs of talk, straight quotes, with a word or two that only a seaman says."""
    salty = re.compile(r"\b(mate|matey|Silver|cap'n|ship|treasure|ye|aye|ay|captain|rum|shipmate|Jim)\b", re.I)
    for path in sorted(glob.glob(os.path.join(folder, "src", "epub", "text", "chapter-*.xhtml"))):
        for p in re.findall(r"<p[^>]*>(.*?)</p>", open(path, encoding="utf-8").read(), flags=re.S):
            text = html.unescape(re.sub(r"<[^>]+>", "", p)).translate(str.maketrans("“”‘’", "\"\"''"))
            text = re.sub(r"[\u2060\ufeff]", "", text).replace("\u2014", "-").replace("\xa0", " ")
            text = re.sub(r"\s+", " ", text).strip()
            if '"' in text and 80 < len(text) < 420 and salty.search(text):
                yield text


def make_data(model, tokenizer, book, rng):
    data = {"stories": [], "chat": [], "lines": [], "book": []}
    for thing in THINGS:
        ask = rng.choice(TELL).format(thing)
        for text, ended in replies(model, tokenizer, ask, 12, 104):
            opener = rng.choice(["", "", "Arr, gather round! ", "Listen well, matey! ", "Sit ye down, lad. "])
            data["stories"].append(exchange(tokenizer, ask, opener + piratical(text), ended))
    for ask in CHAT:
        for text, ended in replies(model, tokenizer, ask, 20, 40):
            if ended and not MODERN.search(text):
                data["chat"].append(exchange(tokenizer, ask, spoken(text, rng)))
    for asks, answers in LINES:
        data["lines"] += [exchange(tokenizer, a, b) for a in asks for b in answers]
    for text in book_paragraphs(book):
        data["book"].append((tokenizer(text)["input_ids"][:LENGTH], 1))
    return data


# ----------------------------------------------------------------------------------------------
# training
# ----------------------------------------------------------------------------------------------
class Scan(torch.autograd.Function):
    """h_t = a_t h_{t-1} + b_t over the first dimension; autograd through transformers' loop is quadratic in time."""

    @staticmethod
    def forward(ctx, a, b):
        h = b.clone()
        for t in range(1, len(b)):
            h[t].addcmul_(a[t], h[t - 1])
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx, g):
        a, h = ctx.saved_tensors
        g = g.clone()
        for t in range(len(g) - 1, 0, -1):
            g[t - 1].addcmul_(a[t], g[t])
        ga = torch.zeros_like(a)
        torch.mul(g[1:], h[:-1], out=ga[1:])
        return ga, g


def selective_scan(u, dt, A, B, C, D, z=None, delta_bias=None, **_):
    """Of whole sequences: u, dt, z [batch, inner, time], B, C [batch, state, time]."""
    dt = torch.nn.functional.softplus(dt + delta_bias[:, None]).permute(2, 0, 1)[..., None]
    u_t = u.permute(2, 0, 1)
    B, C = (m.permute(2, 0, 1)[:, :, None, :] for m in (B, C))
    y = (Scan.apply(torch.exp(dt * A), dt * u_t[..., None] * B) * C).sum(-1) + u_t * D
    return y.permute(1, 2, 0) * torch.nn.functional.silu(z)


def batch_of(rows):
    """Padding is on the right, where a causal model does not see it."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, (row, first) in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row)
        labels[i, first:len(row)] = ids[i, first:len(row)]
    return ids, labels


def train(model, data, steps, rng):
    """Batches of one kind each, so that their lengths are alike."""
    kinds = ["stories", "lines", "chat", "lines", "book", "lines"]
    sizes = {"stories": 8, "lines": 24, "chat": 16, "book": 6}
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    losses, start = {k: [] for k in kinds}, time.process_time()
    for step in range(steps):
        kind = kinds[step % len(kinds)]
        ids, labels = batch_of(rng.sample(data[kind], sizes[kind]))
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        losses[kind].append(loss.item())
        if step % 60 == 59:
            recent = " ".join(f"{k} {sum(v[-5:]) / len(v[-5:]):.2f}" for k, v in losses.items())
            print(f"step {step + 1}/{steps} {recent}  {time.process_time() - start:.0f} s", flush=True)


def save(model):
    """Only the two files that make an adapter, in float16, the same bytes for the same values."""
    os.makedirs(OUT, exist_ok=True)
    model.peft_config["default"].base_model_name_or_path = "storyteller"
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tensors = load_file(os.path.join(folder, "adapter_model.safetensors"))
        config = json.load(open(os.path.join(folder, "adapter_config.json")))
    tensors = {k: v.to(torch.float16).contiguous() for k, v in tensors.items()}
    save_file(tensors, os.path.join(OUT, "adapter_model.safetensors"), metadata={"format": "pt"})
    config["target_modules"].sort()
    json.dump(config, open(os.path.join(OUT, "adapter_config.json"), "w"), indent=2)


SHOW = ["Hello! How are you?", "Who are you?", "Where is the treasure?", "Tell me a story about a dog and a boat.",
        "Write a short story about a dragon.", "What do you like to do?", "I am hungry.", "Do you like my hat?",
        "Tell me about the sea.", "Sing me a song.", "What is your name, sir?", "Is there a monster in the sea?"]


def show(model, tokenizer, title):
    print("----", title)
    for ask in SHOW:
        torch.manual_seed(SEED)
        head = torch.tensor([prompt_ids(tokenizer, ask)])
        out = model.generate(input_ids=head, max_new_tokens=90, do_sample=True, temperature=0.5, top_k=30)
        print(f"> {ask}\n  {tokenizer.decode(out[0, head.shape[1]:], skip_special_tokens=True)!r}", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--book", required=True)
    ap.add_argument("--steps", type=int, default=360)
    ap.add_argument("--show", action="store_true")
    a = ap.parse_args()
    rng = random.Random(SEED)
    torch.manual_seed(SEED)
    tokenizer = transformers.AutoTokenizer.from_pretrained(BASE)
    model = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    data = make_data(model, tokenizer, a.book, rng)
    counts = {k: (len(v), sum(len(ids) for ids, _ in v)) for k, v in data.items()}
    print(counts, f"{time.process_time():.0f} s", flush=True)
    for kind in data:
        ids, first = rng.choice(data[kind])
        print(f"  {kind}: {tokenizer.decode(ids[1:])!r}")
    if a.show:
        show(model, tokenizer, "before")
    model = peft.get_peft_model(model, peft.LoraConfig(
        task_type="CAUSAL_LM", r=8, lora_alpha=16,
        target_modules=["in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]))
    stock, modeling_jamba.mamba_selective_scan = modeling_jamba.mamba_selective_scan, selective_scan
    train(model, data, a.steps, rng)
    modeling_jamba.mamba_selective_scan = stock
    save(model)
    if a.show:
        show(model.eval(), tokenizer, "after")


if __name__ == "__main__":
    main()
