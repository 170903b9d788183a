# plants.sh - bugs of the kinds that others had, one at a time in a copy of the sources; read by tests/fuzz.sh
#
# Each must be found by its target from the committed inputs. Two of each class of CVEs in model loaders (sizes that
# overflow, numbers cut short, indices from the file, lifetime, endless or divided by zero), then single ones.
wanted=" $* "

# plant NAME TARGET FILE OLD NEW [OLD NEW...]
plant() {
    local name=$1 target=$2 copy=$out/plants/$1 kind begun source ran
    source=$(column "$target" 2)
    mutant "$copy" "${@:3}" || { echo "FAIL plant $name"; return; }
    mkdir -p "$copy/bin" "$copy/work"
    kind=$(column "$target" 3)
    if [ "$kind" != - ]; then
        cp "$out/models.o" "$copy/bin/" && PLAIN=1 build_library "$copy/source" "$copy/bin" "$kind"
    fi && build_target "$copy/source" "$copy/bin" "$target" || { echo "FAIL plant $name: does not compile"; return; }
    begun=$(date +%s)
    "$copy/bin/$target" $limits $(dictionary "$target") -max_len="$(column "$target" 4)" -max_total_time=600 \
        -keep_seed=1 -print_final_stats=1 -artifact_prefix="$copy/" "$copy/work" "$corpus/$source" >"$copy/log" 2>&1
    ran=$(awk '/stat::number_of_executed_units/ { print $2 }' "$copy/log")
    if [ -n "$(find "$copy" -maxdepth 1 -name '*-*' -print -quit)" ]; then # an input that breaks it
        ledger "plant-$name" "${ran:-0}" $(($(date +%s) - begun)) "found by $target"
        echo "ok   plant $name: found by $target after $(($(date +%s) - begun)) s, ${ran:-0} executions:" \
            "$(grep -m 1 -oE 'FUZZ_CHECK.*|AddressSanitizer: [a-zA-Z-]+|runtime error: .*|ERROR: .*' "$copy/log")"
        rm -rf "$copy"
    else
        ledger "plant-$name" "${ran:-0}" $(($(date +%s) - begun)) "not found by $target"
        echo "FAIL plant $name: not found by $target"
    fi
}

# Starts one in the background, $jobs at a time.
plants=0
grow() {
    case $wanted in "  " | *" $1 "*) ;; *) return ;; esac
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    plants=$((plants + 1))
    plant "$@" >"$out/plant-$1.txt" 2>&1 &
}

mkdir -p "$out/plants"
rm -f "$out"/plant-*.txt
stale "$out/models.o" && build_models . "$out"

# ---- I: sizes that overflow
grow rule_size model jamba.h 'rule->from_size > JMB_MAX_RULE_TEXT || rule->to_size > JMB_MAX_RULE_TEXT || size' size
grow shape_product safetensors tools/safetensors.h 'bytes = jmb_mul(bytes, (uint64_t)size);' 'bytes *= (uint64_t)size;'
# ---- II: numbers cut short
grow shape_cut safetensors tools/safetensors.h 'bytes = jmb_mul(bytes, (uint64_t)size);' \
    'bytes = (uint32_t)jmb_mul(bytes, (uint64_t)size);'
grow field_length tokenizer_model tools/sentencepiece.h 'field->value > (uint64_t)(r->end - r->p)' \
    '(int32_t)field->value > (int32_t)(r->end - r->p)'
# ---- III: indices from the file
grow merge_result model jamba.h ' || merge->result >= t->tokens) return false;' ') return false;'
grow saved_token state jamba.h 'if (jmb_load_u32(p + at) >= vocab)' 'if (jmb_load_u32(p + at) > vocab + (1u << 30))'
# ---- IV: lifetime and NULL
grow json_freed json tools/json.h 'if (!ok) json_free(doc);' 'if (!ok) free(doc->nodes);'
grow pair_null tokenizer_json tools/tokenizer.h 'json_count(v) == 2 && pair->text[0] && pair->text[1]' \
    'json_count(v) == 2 && pair->text[0]'
# ---- V: division by zero, no end
grow period_zero config tools/families.h '{ "attn_layer_period", NULL, KEY_SIZE, SET_ATTENTION_PERIOD, 8, 1,' \
    '{ "attn_layer_period", NULL, KEY_SIZE, SET_ATTENTION_PERIOD, 8, 0,'
grow json_depth json tools/json.h 'if (s->depth == JSON_MAX_DEPTH)' 'if (s->depth == 1 << 20)'
# ---- single ones: a NaN in the router, "<0x-1>", a first token beyond the vocabulary, padding that wraps, passes that
# ---- count differently, a state of another model
grow router_nan model jamba.h '(best == experts || probability[e] > probability[best])' \
    '(best == experts ? probability[e] >= 0 : probability[e] > probability[best])'
grow byte_minus tokenizer_model tools/tokenizer.h \
    'if (piece->type == SP_BYTE && jmb_byte_of((const uint8_t *)piece->text, piece->size) < 0)
            return tool_error_set(b->error, "piece \"%.*s\" is of type byte and names none", shown, piece->text);' \
    'if (piece->type == SP_BYTE) b->bytes[strtol(piece->text + 3, NULL, 16)] = i;'
grow first_token model jamba.h 'JMB_TRY(jmb_check_token(error, "bos", h->bos, h->vocab, 96));' ''
grow padding_wraps model jamba.h 'size = jmb_round_up((uint64_t)rule->from_size + rule->to_size, 4);' \
    'size = (rule->from_size + rule->to_size + 3) & ~3u;' \
    'rule->from_size > JMB_MAX_RULE_TEXT || rule->to_size > JMB_MAX_RULE_TEXT ||' 'size > JMB_MAX_RULE_TEXT ||'
grow two_passes json tools/json.h "else if (quoted) p += *p == '\\\\' && p + 1 < end;" 'else if (quoted) continue;'
grow other_model state jamba.h 'if (memcmp(h->identity, s->model->metadata.header.identity, 32) != 0)' 'if (0)'

wait
[ "$plants" -gt 0 ] || { echo "no such plant: $wanted"; exit 2; }
cat "$out"/plant-*.txt >"$out/each.txt"
tally <"$out/each.txt"
