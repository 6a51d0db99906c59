"""Things to say, in a handful of languages: everyday words strung together, with the pauses of punctuation."""

from __future__ import annotations

import numpy as np

WORDS: dict[str, str] = {
    "en-us": "hello world today morning coffee window garden music river mountain people together always never "
    "yellow orange butter summer winter telephone beautiful remember whisper thunder popcorn elephant I you we they "
    "walk talk sing open close maybe because everything goodbye what where how boat moon food pool see me tea",
    "en-gb": "good evening ladies weather rather lovely cup of tea please queue garden castle bridge train station "
    "morning paper umbrella brother mother father water bottle cheese lemon apple cherry hello my name is quite "
    "wonderful about around under over through thought room blue spoon meet green street",
    "de": "guten Morgen heute schönes Wetter Straße Bahnhof Wasser Brot Käse Apfel Kirsche Sommer Winter ich du wir "
    "sie spielen laufen sprechen hören über unter zwischen immer niemals vielleicht Mutter Vater Kinder Hund Katze "
    "Blume Baum Wolke Himmel wunderbar danke bitte Buch Uhr grün blau rot müde Möwe zwei drei vier fünf",
    "fr": "bonjour le monde aujourd'hui il fait beau la maison un chat une pomme rouge fromage jardin rivière musique "
    "nous vous ils parler chanter marcher toujours jamais peut-être beaucoup petit grand bleu vert oiseau eau "
    "lumière matin soir merci bien sûr quatre cinq six ouvrir la porte",
    "es": "hola buenos días la casa el perro una manzana agua leche pan cielo azul verde rojo amarillo montaña río "
    "música amigo hermana siempre nunca quizás hablar cantar caminar mañana tarde noche gracias por favor uno dos "
    "tres cuatro ventana puerta zapato mucho bueno",
    "pt-br": "bom dia meu amigo a casa o cachorro uma laranja água pão queijo céu azul verde vermelho montanha rio "
    "música irmã sempre nunca talvez falar cantar andar manhã tarde noite obrigado por favor janela porta muito bonito "
    "coração saudade chuva vento folha",
    "nl": "goedemorgen wereld vandaag mooi weer huis hond kat appel kaas water brood boom bloem lucht blauw groen rood "
    "geel vriend moeder vader altijd nooit misschien praten zingen lopen ochtend avond nacht dank je wel deur raam "
    "boek schaap uit leuk twee drie vier",
    "pl": "dzień dobry świat dzisiaj piękna pogoda dom pies kot jabłko ser woda chleb drzewo kwiat niebo niebieski "
    "zielony czerwony przyjaciel matka ojciec zawsze nigdy może mówić śpiewać chodzić rano wieczór noc dziękuję "
    "proszę okno drzwi książka",
    "sv": "god morgon världen idag vackert väder hus hund katt äpple ost vatten bröd träd blomma himmel blå grön röd "
    "gul vän mor far alltid aldrig kanske prata sjunga gå kväll natt tack så mycket dörr fönster bok sjö ö",
    "tr": "merhaba dünya bugün hava çok güzel ev köpek kedi elma peynir su ekmek ağaç çiçek gökyüzü mavi yeşil "
    "kırmızı sarı arkadaş anne baba her zaman belki konuşmak şarkı yürümek sabah akşam gece teşekkür ederim kapı",
    "it": "buongiorno mondo oggi bel tempo la casa il cane un gatto una mela formaggio acqua pane albero fiore cielo "
    "azzurro verde rosso giallo amico madre padre sempre mai forse parlare cantare camminare mattina sera notte grazie",
    "fi": "hyvää huomenta maailma tänään kaunis sää talo koira kissa omena juusto vesi leipä puu kukka taivas sininen "
    "vihreä punainen keltainen ystävä äiti isä aina koskaan ehkä puhua laulaa kävellä aamu ilta yö kiitos ovi",
    "id": "selamat pagi dunia hari ini cuaca bagus rumah anjing kucing apel keju air roti pohon bunga langit biru "
    "hijau merah kuning teman ibu ayah selalu tidak pernah mungkin bicara menyanyi berjalan malam terima kasih pintu",
}
"""Words by espeak-ng's name of the language."""
HELD_OUT_LANGUAGES = ("it", "fi", "id")
"""Never heard in training."""
_STOPS = (". ", "? ", ", ", ", ", *[" "] * 14)


def text(rng: np.random.Generator, language: str, words: int) -> str:
    """So many words of a language, with stops among them."""
    known = WORDS[language].split()
    out = ""
    for _ in range(words):
        out += str(rng.choice(known)) + str(rng.choice(_STOPS))
    return out.strip(" ,.?") + "."
