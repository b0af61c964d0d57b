"""Sentences of our own that say the same in several languages, on three topics, for what works across languages."""

from __future__ import annotations

# Blocks of a topic and a sentence in English, German, Spanish, French, Russian.
_BLOCKS = """
cooking
Peel the potatoes and cut them into small cubes.
Schäle die Kartoffeln und schneide sie in kleine Würfel.
Pela las patatas y córtalas en cubos pequeños.
Épluchez les pommes de terre et coupez-les en petits cubes.
Очистите картофель и нарежьте его маленькими кубиками.

cooking
Add salt and pepper to the soup before serving.
Gib vor dem Servieren Salz und Pfeffer in die Suppe.
Añade sal y pimienta a la sopa antes de servir.
Ajoutez du sel et du poivre à la soupe avant de servir.
Добавьте в суп соль и перец перед подачей.

cooking
Bake the bread in the oven for forty minutes.
Backe das Brot vierzig Minuten lang im Ofen.
Hornea el pan en el horno durante cuarenta minutos.
Faites cuire le pain au four pendant quarante minutes.
Выпекайте хлеб в духовке сорок минут.

cooking
Melt the butter in a pan and fry the onions.
Zerlasse die Butter in einer Pfanne und brate die Zwiebeln.
Derrite la mantequilla en una sartén y fríe las cebollas.
Faites fondre le beurre dans une poêle et faites revenir les oignons.
Растопите масло на сковороде и обжарьте лук.

cooking
Mix the flour with the eggs and the sugar.
Vermische das Mehl mit den Eiern und dem Zucker.
Mezcla la harina con los huevos y el azúcar.
Mélangez la farine avec les œufs et le sucre.
Смешайте муку с яйцами и сахаром.

computer
Restart the computer after the update is installed.
Starte den Computer neu, nachdem das Update installiert ist.
Reinicia el ordenador después de instalar la actualización.
Redémarrez l'ordinateur après l'installation de la mise à jour.
Перезагрузите компьютер после установки обновления.

computer
The password must have at least eight characters.
Das Passwort muss mindestens acht Zeichen haben.
La contraseña debe tener al menos ocho caracteres.
Le mot de passe doit contenir au moins huit caractères.
Пароль должен содержать не менее восьми символов.

computer
Click the button to save the file.
Klicke auf die Schaltfläche, um die Datei zu speichern.
Haz clic en el botón para guardar el archivo.
Cliquez sur le bouton pour enregistrer le fichier.
Нажмите кнопку, чтобы сохранить файл.

computer
The program can't open this folder.
Das Programm kann diesen Ordner nicht öffnen.
El programa no puede abrir esta carpeta.
Le programme ne peut pas ouvrir ce dossier.
Программа не может открыть эту папку.

computer
Copy the link and paste it into your browser.
Kopiere den Link und füge ihn in deinen Browser ein.
Copia el enlace y pégalo en tu navegador.
Copiez le lien et collez-le dans votre navigateur.
Скопируйте ссылку и вставьте её в браузер.

travel
The train to the airport leaves every hour.
Der Zug zum Flughafen fährt jede Stunde ab.
El tren al aeropuerto sale cada hora.
Le train pour l'aéroport part toutes les heures.
Поезд в аэропорт отправляется каждый час.

travel
Where can I buy a ticket for the bus?
Wo kann ich eine Fahrkarte für den Bus kaufen?
¿Dónde puedo comprar un billete para el autobús?
Où puis-je acheter un billet pour le bus ?
Где я могу купить билет на автобус?

travel
We stayed in a small hotel near the beach.
Wir haben in einem kleinen Hotel in der Nähe des Strandes übernachtet.
Nos alojamos en un pequeño hotel cerca de la playa.
Nous avons logé dans un petit hôtel près de la plage.
Мы остановились в маленькой гостинице недалеко от пляжа.

travel
The flight to London was two hours late.
Der Flug nach London hatte zwei Stunden Verspätung.
El vuelo a Londres salió con dos horas de retraso.
Le vol pour Londres avait deux heures de retard.
Рейс в Лондон задержался на два часа.

travel
You need a passport to cross the border.
Du brauchst einen Reisepass, um die Grenze zu überqueren.
Necesitas un pasaporte para cruzar la frontera.
Il faut un passeport pour passer la frontière.
Чтобы пересечь границу, нужен паспорт.
"""
LANGUAGES = ("en", "de", "es", "fr", "ru")
_FOUND = [block.split("\n") for block in _BLOCKS.strip().split("\n\n")]
TOPICS = [block[0] for block in _FOUND]
# By language, in one order.
SENTENCES = {language: [block[place] for block in _FOUND] for place, language in enumerate(LANGUAGES, 1)}
# English sentences whose translations are nowhere above.
STRAYS = (
    "The old church was built in the twelfth century.",
    "My brother plays the violin in an orchestra.",
    "Plants turn sunlight into sugar.",
    "The judge read the verdict aloud.",
    "It has been raining since yesterday evening.",
)
