# Runs a client's script once and says what it came to, as run_python.py does.
set -e
trap 'printf "%s%s" "$question_vector" "$passage_vectors" >&2' EXIT
. /dev/stdin
printf '{"question_vector": %s, "passage_vectors": %s}' "$question_vector" "$passage_vectors" > "$1"
trap - EXIT
