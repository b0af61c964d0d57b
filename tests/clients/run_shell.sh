# Runs a client's script once and says what it came to, as run_python.py does.
set -e
. /dev/stdin
printf '{"question_vector": %s, "passage_vectors": %s}' "$question_vector" "$passage_vectors" > "$1"
