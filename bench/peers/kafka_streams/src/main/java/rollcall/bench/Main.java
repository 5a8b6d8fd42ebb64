package rollcall.bench;

import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.Repartitioned;
import org.apache.kafka.streams.state.Stores;

/**
 * Rollcall's job as one would write it with Kafka Streams: each result is an upsert into a state store, counts per
 * batch, one finalized record a batch. Prints RUNNING once it reads. Arguments are name=value.
 */
public final class Main {
    public static void main(String[] arguments) throws InterruptedException {
        Map<String, String> options = new HashMap<>();
        for (String argument : arguments) {
            String[] parts = argument.split("=", 2);
            options.put(parts[0], parts[1]);
        }
        KafkaStreams streams = new KafkaStreams(topology(options), settings(options));
        CountDownLatch ended = new CountDownLatch(1);
        streams.setStateListener((now, before) -> {
            System.out.println(now);
            System.out.flush();
            if (now == KafkaStreams.State.ERROR || now == KafkaStreams.State.NOT_RUNNING) {
                ended.countDown();
            }
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
        ended.await();
        if (streams.state() == KafkaStreams.State.ERROR) {
            Runtime.getRuntime().halt(1);
        }
    }

    private static Topology topology(Map<String, String> options) {
        var bytes = Serdes.ByteArray();
        StreamsBuilder builder = new StreamsBuilder();
        // One entry an item, written once: a cache in front would only copy it.
        builder.addStateStore(Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore(Counting.ITEMS), bytes, bytes)
                .withCachingDisabled()
                .withLoggingEnabled(Map.of()));
        // A batch's counts change with every result: the cache makes one changelog record a commit of that.
        builder.addStateStore(Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore(Counting.BATCHES), bytes, bytes)
                .withCachingEnabled()
                .withLoggingEnabled(Map.of()));
        List<String> sources = Arrays.asList(options.get("topics").split(","));
        KStream<byte[], byte[]> records = builder.stream(sources, Consumed.with(bytes, bytes));
        if (Boolean.parseBoolean(options.getOrDefault("repartition", "false"))) {
            int partitions = Integer.parseInt(options.get("partitions"));
            records = records.repartition(
                    Repartitioned.with(bytes, bytes).withNumberOfPartitions(partitions).withName("home"));
        }
        boolean full = !"compact".equals(options.get("register"));
        records.process(() -> new Counting(full), Counting.ITEMS, Counting.BATCHES)
                .to(options.get("finalized"), Produced.with(bytes, bytes));
        return builder.build();
    }

    private static Properties settings(Map<String, String> options) {
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, options.get("application"));
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, options.get("bootstrap"));
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, options.get("threads"));
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, options.getOrDefault("commit_ms", "100"));
        settings.put(StreamsConfig.POLL_MS_CONFIG, options.getOrDefault("poll_ms", "100"));
        settings.put(StreamsConfig.STATE_DIR_CONFIG, options.get("state"));
        settings.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        if (Boolean.parseBoolean(options.getOrDefault("tuned", "true"))) {
            tune(settings);
        }
        return settings;
    }

    private static void tune(Properties settings) {
        settings.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 128L * 1024 * 1024);
        settings.put(StreamsConfig.BUFFERED_RECORDS_PER_PARTITION_CONFIG, 5_000);
        settings.put(StreamsConfig.ROCKSDB_CONFIG_SETTER_CLASS_CONFIG, LargeBuffers.class);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 5_000);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG), 4 * 1024 * 1024);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 256 * 1024);
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BUFFER_MEMORY_CONFIG), 128L * 1024 * 1024);
    }

    private Main() {}
}
