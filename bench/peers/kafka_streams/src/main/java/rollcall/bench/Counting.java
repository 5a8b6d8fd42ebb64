package rollcall.bench;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;

/**
 * The fold. An item's register is what was last said of it: a head of seven bytes (on the manifest, known, status,
 * effect, attempt as three) and, unless it is to be compact, the message itself, as Rollcall's row keeps its fields.
 */
final class Counting implements Processor<byte[], byte[], byte[], byte[]> {
    static final String ITEMS = "items";
    static final String BATCHES = "batches";

    private static final int HEAD = 7;

    private final boolean full;
    private ProcessorContext<byte[], byte[]> context;
    private KeyValueStore<byte[], byte[]> items;
    private KeyValueStore<byte[], byte[]> batches;

    Counting(boolean full) {
        this.full = full;
    }

    @Override
    public void init(ProcessorContext<byte[], byte[]> context) {
        this.context = context;
        items = context.getStateStore(ITEMS);
        batches = context.getStateStore(BATCHES);
    }

    @Override
    public void process(Record<byte[], byte[]> record) {
        Event event = Event.parsed(record.value());
        byte[] batch = record.key();
        Counts counts = Counts.read(batches.get(batch));
        switch (event.type) {
            case "item.result" -> take(batch, event, record.value(), counts);
            case "batch.opened", "batch.items_expected" -> expect(batch, event, counts);
            case "batch.sealed" -> counts.sealed = true;
            case "bench.prefill" -> {
                prefill(batch, event, record.value());
                return;
            }
            default -> throw new IllegalArgumentException("unknown type " + event.type);
        }
        if (!counts.finalized && counts.complete()) {
            counts.finalized = true;
            context.forward(record.withValue(counts.event(new String(batch, StandardCharsets.UTF_8))));
        }
        batches.put(batch, counts.written());
    }

    private void take(byte[] batch, Event event, byte[] value, Counts counts) {
        byte[] key = key(batch, event.itemId);
        byte[] before = items.get(key);
        boolean expected = before != null && before[0] != 0;
        byte[] after = register(expected, event, value);
        boolean known = before != null && before[1] != 0;
        if (known && (Arrays.equals(before, after) || outdated(before, event))) {
            counts.duplicates++;
            return;
        }
        if (counts.finalized) {
            counts.late++;
            return;
        }
        if (known) {
            move(counts, before[2], before[3], expected, -1);
        }
        move(counts, event.status, event.effect, expected, 1);
        items.put(key, after);
    }

    private static void move(Counts counts, int status, int effect, boolean expected, int by) {
        counts.statuses[status] += by;
        if (effect >= 0) {
            counts.effects[effect] += by;
        }
        if (expected && status != Event.RETRYING) {
            counts.matched += by;
        }
    }

    private static boolean outdated(byte[] before, Event event) {
        int attempt = (before[4] & 0xff) << 16 | (before[5] & 0xff) << 8 | before[6] & 0xff;
        return event.attempt < attempt
                || event.attempt == attempt && event.status == Event.RETRYING && before[2] != Event.RETRYING;
    }

    private void expect(byte[] batch, Event event, Counts counts) {
        if (event.type.equals("batch.opened")) {
            counts.total = Math.max(counts.total, event.total);
            counts.sealed = event.sealed && (event.total >= 0 || event.itemIds != null);
        }
        if (event.itemIds == null) {
            return;
        }
        counts.manifest = true;
        counts.total = Math.max(counts.total, 0) + event.itemIds.size();
        for (String item : event.itemIds) {
            byte[] key = key(batch, item);
            byte[] before = items.get(key);
            byte[] after = before == null ? new byte[HEAD] : before;
            after[0] = 1;
            if (after[1] != 0 && after[2] != Event.RETRYING) {
                counts.matched++;
            }
            items.put(key, after);
        }
    }

    /** Items that were there before the measurement: one message stands for many. */
    private void prefill(byte[] batch, Event event, byte[] value) {
        event.status = 0;
        for (long item = event.from; item < event.to; item++) {
            items.put(key(batch, String.format("item-%07d", item)), register(false, event, value));
        }
    }

    private byte[] register(boolean expected, Event event, byte[] value) {
        byte[] register = new byte[full ? HEAD + value.length : HEAD];
        register[0] = (byte) (expected ? 1 : 0);
        register[1] = 1;
        register[2] = (byte) event.status;
        register[3] = (byte) event.effect;
        register[4] = (byte) (event.attempt >> 16);
        register[5] = (byte) (event.attempt >> 8);
        register[6] = (byte) event.attempt;
        if (full) {
            System.arraycopy(value, 0, register, HEAD, value.length);
        }
        return register;
    }

    private static byte[] key(byte[] batch, String item) {
        byte[] id = item.getBytes(StandardCharsets.UTF_8);
        byte[] key = Arrays.copyOf(batch, batch.length + 1 + id.length);
        System.arraycopy(id, 0, key, batch.length + 1, id.length);
        return key;
    }
}
